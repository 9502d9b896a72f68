# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""The picture of a selection: the curve, its error band, the other criteria, and the pick."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mmaselect.files import written_aside
from mmaselect.selection.result import Curve, SelectionResult

COLORS = ('#1b4f8a', '#c8553d', '#588157', '#8d6a9f', '#b08900')


def _series(curve: Curve) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Timesteps, scores and standard errors as arrays, NaN where there is none."""
    sem = [np.nan if point.sem is None else point.sem for point in curve.points]
    return np.array(curve.timesteps), np.array(curve.scores), np.array(sem)


def selection_figure(result: SelectionResult) -> Figure:
    """Draw a selection with matplotlib, without touching pyplot's global state.

    The deciding curve has its own axis; other criteria are scaled to the same height, since only
    their shape and their maximum can be compared.
    """
    figure = Figure(figsize=(7.2, 4.2), dpi=150, layout='constrained')
    FigureCanvasAgg(figure)
    axis = figure.add_subplot()
    steps, scores, sem = _series(result.curve)
    for tap in result.per_tap if len(result.per_tap) > 1 else ():
        tap_steps, tap_scores, _ = _series(tap)
        axis.plot(tap_steps, tap_scores, color=COLORS[0], alpha=0.3, linewidth=0.9)
        last = int(np.flatnonzero(np.isfinite(tap_scores))[-1])
        axis.annotate(
            f'block {tap.block}', (tap_steps[last], tap_scores[last]), xytext=(3, 0),
            textcoords='offset points', fontsize=6, color=COLORS[0], alpha=0.8, va='center',
        )  # fmt: skip
    axis.fill_between(
        steps, scores - 2 * sem, scores + 2 * sem, color=COLORS[0], alpha=0.18, linewidth=0
    )
    axis.plot(steps, scores, color=COLORS[0], marker='o', markersize=3, label=result.criterion)
    low, high = np.nanmin(scores), np.nanmax(scores)
    for (name, other), color in zip(result.others.items(), COLORS[1:], strict=False):
        x, y, _ = _series(other)
        bottom, span = np.nanmin(y), np.nanmax(y) - np.nanmin(y)
        y = low + (y - bottom) / (span if span > 0 else 1.0) * (high - low)
        axis.plot(x, y, color=color, linewidth=1, linestyle='--', label=f'{name} (scaled)')
        axis.axvline(other.timestep, color=color, linewidth=0.8, linestyle=':')
    best = result.curve.best
    axis.axvline(best.timestep, color=COLORS[0], linewidth=1)
    axis.plot([best.timestep], [best.score], marker='*', markersize=14, color=COLORS[0])
    # On the side with more room, so that it covers no part of the curve's end.
    left = best.timestep > (steps[0] + steps[-1]) / 2
    axis.annotate(
        f't = {result.timestep} (sigma {result.noise_level:.2f})',
        (best.timestep, best.score),
        xytext=(-10 if left else 10, 6),
        textcoords='offset points',
        ha='right' if left else 'left',
        fontsize=9,
        fontweight='bold',
        color=COLORS[0],
    )
    axis.set_xlabel('timestep (0 = clean)')
    axis.set_ylabel(result.criterion)
    axis.margins(x=0.03, y=0.12)
    axis.spines[['top', 'right']].set_visible(False)
    axis.legend(frameon=False, fontsize=8, loc='best')
    blocks = ', '.join(map(str, dict.fromkeys(result.blocks)))
    axis.set_title(
        f'{result.feature} of block {blocks}, {result.num_images} images, {result.seconds:.0f} s',
        fontsize=9,
        loc='left',
    )
    return figure


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write a figure; the file is there in full or not at all."""
    # Text stays text in vector formats, so that a paper's fonts can be set.
    with (
        written_aside(path) as aside,
        matplotlib.rc_context({'svg.fonttype': 'none', 'pdf.fonttype': 42}),
    ):
        figure.savefig(aside)
    return Path(path)


def figure_pixels(figure: Figure) -> np.ndarray:
    """A figure as (H, W, 3) uint8, RGB, for a toolbox's visualizer."""
    canvas = figure.canvas
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def save_selection(result: SelectionResult, folder: str | Path) -> tuple[Path, Path]:
    """Write ``selection.json`` and ``selection.png`` into a folder, and return their paths."""
    folder = Path(folder)
    picture = save_figure(selection_figure(result), folder / 'selection.png')
    return result.save(folder / 'selection.json'), picture
