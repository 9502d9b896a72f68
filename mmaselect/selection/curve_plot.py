# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""A curve of a selection on matplotlib's axes."""

from __future__ import annotations

import io

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mmaselect.selection.result import Curve, SelectionResult, finalists

COLORS = ('#1b4f8a', '#c8553d', '#588157', '#8d6a9f', '#b08900')


def series(curve: Curve) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Timesteps, scores and standard errors as arrays, NaN where there is none."""
    sem = [np.nan if point.sem is None else point.sem for point in curve.points]
    return np.array(curve.timesteps), np.array(curve.scores), np.array(sem)


def draw_curve(axis: Axes, curve: Curve, color: str) -> None:
    """A curve with its error band, in its own units."""
    steps, scores, sem = series(curve)
    axis.fill_between(
        steps, scores - 2 * sem, scores + 2 * sem, color=color, alpha=0.18, linewidth=0
    )
    axis.plot(steps, scores, color=color, linewidth=1.2)
    most = max((point.images or 0 for point in finalists(curve.points)), default=0)
    dropped = np.array([(point.images or 0) < most for point in curve.points])
    (kept,) = axis.plot(
        steps[~dropped], scores[~dropped], color=color, marker='o', markersize=2.5, linestyle=''
    )
    # Names in an SVG, by which a page finds the points.
    kept.set_gid(f'{curve.criterion} kept')
    if dropped.any():
        bars = axis.errorbar(
            steps[dropped], scores[dropped], 2 * sem[dropped], color=color, linestyle='',
            marker='o', markersize=3.5, markerfacecolor='white', elinewidth=0.7,
            markeredgewidth=0.8,
        )  # fmt: skip
        bars.lines[0].set_gid(f'{curve.criterion} dropped')
    axis.set_ylabel(curve.criterion, fontsize=8 if len(curve.criterion) < 20 else 6.5)
    axis.tick_params(labelsize=7)


def plot_curve(result: SelectionResult, axes: Axes | None = None) -> Axes:
    """Draw the deciding curve with the pick and its interval: see `SelectionResult.plot`."""
    if axes is None:
        import matplotlib.pyplot as plt  # a notebook shows its figures

        _, axes = plt.subplots(figsize=(6.4, 3.0), layout='constrained')
    draw_curve(axes, result.curve, COLORS[0])
    if result.interval is not None:
        axes.axvspan(*result.interval, color=COLORS[0], alpha=0.1, linewidth=0)
    best = result.curve.best
    axes.plot([best.timestep], [best.score or 0.0], marker='*', markersize=14, color=COLORS[0])
    axes.set_xlabel('timestep (0 = clean)')
    axes.set_title(f'{result.where}: timestep {result}', fontsize=9)
    return axes


def curve_svg(result: SelectionResult) -> str:
    """The same as SVG, which stands in a page as it is; equal results give equal texts."""
    figure = Figure(figsize=(6.4, 2.6), layout='constrained')
    FigureCanvasAgg(figure)
    plot_curve(result, figure.subplots())
    text = io.StringIO()
    with matplotlib.rc_context({'svg.hashsalt': 'mmaselect', 'svg.fonttype': 'none'}):
        figure.savefig(text, format='svg', metadata={'Date': None})
    return text.getvalue().partition('<!DOCTYPE')[2].partition('>')[2]
