# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""One look for all figures, as PNG and as vectors (PDF, SVG)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mmaselect.report.plot import save_figure
from mmaselect.selection.curve_plot import COLORS

if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType

#: Of what was measured with labels; criteria take the package's colors.
METRIC_COLOR = '#222222'
SUFFIXES = ('.png', '.pdf', '.svg')

STYLE: dict[RcKeyType, Any] = {
    'font.size': 8,
    'axes.titlesize': 8,
    'axes.labelsize': 8,
    'xtick.labelsize': 7,
    'ytick.labelsize': 7,
    'legend.fontsize': 7,
    'legend.frameon': False,
    'axes.spines.top': False,
    'axes.spines.right': False,
    'axes.linewidth': 0.6,
    'lines.linewidth': 1.2,
    'lines.markersize': 2.5,
    'figure.dpi': 200,
}


#: Decorates a function that draws: matplotlib reads most settings when a thing is made.
styled = matplotlib.rc_context(STYLE)


@styled
def make_figure(
    rows: int = 1, columns: int = 1, width: float = 3.3, height: float = 2.3, **options: Any
) -> tuple[Figure, np.ndarray]:
    """A figure with a grid of axes, without pyplot's global state.

    Args:
        rows: Rows of axes.
        columns: Columns of axes.
        width: Width of one of them, in inches.
        height: Height of one of them, in inches.
        options: Of ``Figure.subplots``.

    Returns:
        The figure, and its axes (rows, columns).
    """
    figure = Figure(figsize=(width * columns, height * rows), layout='constrained')
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


@styled
def save_all(figure: Figure, stem: str | Path) -> list[Path]:
    """Write a figure as PNG, PDF and SVG."""
    stem = Path(stem)
    return [save_figure(figure, stem.with_name(stem.name + suffix)) for suffix in SUFFIXES]


def panel_grid(count: int) -> tuple[int, int]:
    """Rows and columns for a number of panels."""
    columns = min(count, max(1, math.ceil(math.sqrt(count))))
    return math.ceil(count / columns), columns


@styled
def draw_overlay(
    axis: Axes,
    timesteps: Sequence[int],
    metric: str,
    values: Sequence[float],
    lows: Sequence[float] | None,
    highs: Sequence[float] | None,
    curves: dict[str, Sequence[float | None]],
    picks: dict[str, int],
) -> None:
    """A measured metric over timesteps with its interval, and criteria scaled to its height.

    Only a criterion's shape and its maximum can be compared with a metric, so its own units are
    left out; where it picks is a vertical line.

    Args:
        axis: Where to draw.
        timesteps: Timesteps of all curves.
        metric: Name of the metric, with its unit.
        values: Values of the metric.
        lows: Lower ends of its intervals; None for no intervals.
        highs: Upper ends.
        curves: Scores by criterion.
        picks: Timestep by criterion.
    """
    if lows is not None and highs is not None:
        axis.fill_between(timesteps, lows, highs, color=METRIC_COLOR, alpha=0.12, linewidth=0)
    axis.plot(timesteps, values, color=METRIC_COLOR, marker='o', label=metric)
    bottom, top = min(values), max(values)
    for (name, scores), color in zip(curves.items(), _cycle(len(curves)), strict=True):
        scaled = scale_to(scores, bottom, top)
        axis.plot(timesteps, scaled, color=color, linestyle='--', label=f'{name} (scaled)')
        axis.axvline(picks[name], color=color, linewidth=0.8, linestyle=':')
    axis.set_xlabel('timestep (0 = clean)')
    axis.set_ylabel(metric)


def scale_to(scores: Sequence[float | None], bottom: float, top: float) -> np.ndarray:
    """Scores moved and stretched to span [bottom, top]; None becomes NaN."""
    values = np.array([np.nan if score is None else score for score in scores], dtype=float)
    low, high = np.nanmin(values), np.nanmax(values)
    span = high - low
    return bottom + (values - low) / (span if span > 0 else 1.0) * (top - bottom)


def _cycle(count: int) -> list[str]:
    return [COLORS[i % len(COLORS)] for i in range(count)]
