# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""The picture of a selection: the curve, its error band, the other criteria, and the pick."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from mmaselect.files import written_aside
from mmaselect.logs import warn
from mmaselect.report.places import score_range, searched_features
from mmaselect.selection.curve_plot import COLORS, draw_curve, series
from mmaselect.selection.result import Curve, SelectionResult, images_seen


def selection_figure(result: SelectionResult) -> Figure:
    """Draw a selection with matplotlib, without touching pyplot's global state.

    The deciding curve has the upper panel, with the pick, its interval and the curve of each block;
    every other criterion has a panel of its own below, in its own units. The upper edge has the
    noise levels. Where a place was searched, maps of all scores over block and timestep stand
    below, with the pick as a star and points where timesteps may be the best. A timestep that a
    race dropped is hollow, with a bar of two standard errors. A legend says so.
    """
    panels = 1 + len(result.others)
    features = searched_features(result)
    maps = len(features)
    height = 3.0 + 1.5 * (panels - 1) + 1.3 * maps
    figure = Figure(figsize=(7.2, height), dpi=150, layout='constrained')
    FigureCanvasAgg(figure)
    axes = figure.subplots(
        panels + maps,
        1,
        sharex=True,
        squeeze=False,
        height_ratios=[2.2] + [1] * (panels - 1) + [0.9] * maps,
    )[:, 0]
    axes, map_axes = axes[:panels], axes[panels:]
    if maps:
        _draw_maps(figure, list(map_axes), result, features)
    top = axes[0]
    for tap in result.per_tap if len(result.per_tap) > 1 and not maps else ():
        tap_steps, tap_scores, _ = series(tap)
        top.plot(tap_steps, tap_scores, color=COLORS[0], alpha=0.3, linewidth=0.9)
        last = int(np.flatnonzero(np.isfinite(tap_scores))[-1])
        top.annotate(
            f'block {tap.block}', (tap_steps[last], tap_scores[last]), xytext=(3, 0),
            textcoords='offset points', fontsize=6, color=COLORS[0], alpha=0.8, va='center',
        )  # fmt: skip
    draw_curve(top, result.curve, COLORS[0])
    best = result.curve.best
    if result.interval is not None:
        top.axvspan(*result.interval, color=COLORS[0], alpha=0.1, linewidth=0)
    top.plot([best.timestep], [best.score], marker='*', markersize=14, color=COLORS[0])
    # On the side with more room, so that it covers no part of the curve's end.
    steps = result.curve.timesteps
    left = best.timestep > (steps[0] + steps[-1]) / 2
    top.annotate(
        f't = {result} (sigma {result.noise_level:.2f})',
        (best.timestep, best.score),
        xytext=(-10 if left else 10, 6),
        textcoords='offset points',
        ha='right' if left else 'left',
        fontsize=9,
        fontweight='bold',
        color=COLORS[0],
    )
    for axis, (_, other), color in zip(
        axes[1:], result.others.items(), itertools.cycle(COLORS[1:]), strict=False
    ):
        draw_curve(axis, other, color)
        axis.plot([other.timestep], [other.best.score], marker='*', markersize=9, color=color)
        axis.annotate(
            f't = {other.timestep}', (other.timestep, other.best.score), xytext=(6, 3),
            textcoords='offset points', fontsize=7, color=color,
        )  # fmt: skip
    for axis in axes:
        axis.axvline(best.timestep, color=COLORS[0], linewidth=0.9, alpha=0.7)
        axis.spines['right'].set_visible(False)
        axis.margins(x=0.03, y=0.16)
    for axis in axes[1:]:
        axis.spines['top'].set_visible(False)
    (map_axes if maps else axes)[-1].set_xlabel('timestep (0 = clean)')
    if len(result.curve.points) == 1:
        top.set_xticks(result.curve.timesteps)  # of all panels
    _add_noise_levels(top, result.curve)
    _add_legend(figure, result)
    figure.suptitle(
        f'{result.where_scored}, {images_seen(result)}, {result.seconds:.0f} s',
        fontsize=9,
        x=0.02,
        ha='left',
    )
    return figure


def _draw_maps(
    figure: Figure, axes: Sequence[Axes], result: SelectionResult, features: Sequence[str]
) -> None:
    """For each feature the scores over block and timestep in one color scale, and the pick."""
    low, high = score_range(result)
    mesh = None
    for axis, feature in zip(axes, features, strict=True):
        curves = sorted(
            (curve for curve in result.per_tap if curve.feature == feature),
            key=lambda curve: curve.block or 0,
        )
        steps = sorted({step for curve in curves for step in curve.timesteps})
        found = [dict(zip(curve.timesteps, curve.scores, strict=True)) for curve in curves]
        values = np.array([[one.get(step, np.nan) for step in steps] for one in found])
        blocks = [curve.block or 0 for curve in curves]
        mesh = axis.pcolormesh(
            _edges(steps),
            _edges(range(len(blocks))),
            values,
            vmin=low,
            vmax=high,
            cmap='viridis',
            rasterized=True,  # thousands of cells, and no gaps between them
        )
        shown = range(0, len(blocks), max(1, len(blocks) // 6))
        axis.set_yticks(list(shown), [str(blocks[row]) for row in shown])
        axis.set_ylabel(f'{feature}\nblock', fontsize=7)
        axis.tick_params(labelsize=6)
        for block, name, step in result.contenders:
            if name == feature and block in blocks:
                axis.plot(
                    [step], [blocks.index(block)], marker='o', markersize=2.5, color='white',
                    markeredgecolor='black', markeredgewidth=0.4,
                )  # fmt: skip
        for block, name in result.cells:
            if name == feature and block in blocks:
                axis.plot(
                    [result.timestep], [blocks.index(block)], marker='*', markersize=10,
                    color='white', markeredgecolor=COLORS[1],
                )  # fmt: skip
    if mesh is not None:
        bar = figure.colorbar(mesh, ax=list(axes), pad=0.01, aspect=30)
        bar.set_label(result.criterion, fontsize=7)
        bar.ax.tick_params(labelsize=6)


def _edges(places: Sequence[int]) -> np.ndarray:
    """Where the cells of a map end: half way to the next ones, and as far beyond the last ones."""
    known = np.array(places, float)
    if len(known) == 1:
        return known[0] + np.array([-0.5, 0.5])
    between = (known[1:] + known[:-1]) / 2
    return np.concatenate([[2 * known[0] - between[0]], between, [2 * known[-1] - between[-1]]])


def _add_legend(figure: Figure, result: SelectionResult) -> None:
    """What points, bands and lines mean, below all panels."""
    color = COLORS[0]
    entries: list[tuple[Artist, str]] = [
        (Line2D([], [], color=color, marker='o', markersize=2.5), 'score'),
        (Patch(color=color, alpha=0.18), 'two standard errors'),
    ]
    if len({point.images for point in result.curve.points}) > 1:
        hollow = Line2D(
            [], [], color=color, marker='o', markersize=3.5, markerfacecolor='white', linestyle=''
        )
        entries.append((hollow, 'dropped by the race, on fewer images'))
    if result.interval is not None:
        band = Patch(color=color, alpha=0.1)
        entries.append((band, 'picks for other images, 95 %'))
    if len(result.per_tap) > 1 and 'search' not in result.settings:
        entries.append((Line2D([], [], color=color, alpha=0.3, linewidth=0.9), 'a block'))
    if len(result.contenders) > 1:
        dot = Line2D(
            [], [], color='white', marker='o', markersize=3, markeredgecolor='black',
            markeredgewidth=0.5, linestyle='',
        )  # fmt: skip
        entries.append((dot, 'in a map: may be the best'))
    shared = {tuple(curve.timesteps) for curve in result.per_tap}
    unscored = any(np.isnan(curve.scores).any() for curve in result.per_tap)
    if searched_features(result) and (len(shared) > 1 or unscored):
        blank = Patch(facecolor='white', edgecolor='black', linewidth=0.4)
        entries.append((blank, 'in a map: not scored'))
    columns = len(entries) if len(entries) < 5 else 3
    figure.legend(
        *zip(*entries, strict=True), loc='outside lower center', ncols=columns, fontsize=6.5,
        frameon=False, handlelength=1.5, columnspacing=1.2,
    )  # fmt: skip


def _add_noise_levels(axis: Axes, curve: Curve) -> None:
    """A second axis above: the noise level of some of the timesteps."""
    points = curve.points
    steps = np.array(curve.timesteps)
    # Evenly along the axis: steps around the pick may be finer than the others.
    near = [int(abs(steps - x).argmin()) for x in np.linspace(steps[0], steps[-1], 9)]
    chosen = [points[place] for place in sorted(set(near))]
    above = axis.secondary_xaxis('top')
    above.set_xticks(
        [point.timestep for point in chosen], [f'{point.noise_level:.2f}' for point in chosen]
    )
    above.set_xlabel('noise level (sigma)', fontsize=8)
    above.tick_params(labelsize=7)


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
    assert isinstance(canvas, FigureCanvasAgg)  # as every figure of this package has
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def save_selection(result: SelectionResult, folder: str | Path) -> list[Path]:
    """Write ``selection.json`` and ``selection.png`` into a folder, and return their paths.

    A file that cannot be written is left out, with a warning: the selection cost more than it.
    """
    folder, written = Path(folder), []
    for path, write in (
        (folder / 'selection.json', result.save),
        (folder / 'selection.png', lambda path: save_figure(selection_figure(result), path)),
    ):
        try:
            written.append(write(path))
        except OSError as error:
            warn(f'{path} cannot be written ({error})')
    return written
