# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""The places of a search as small curves, all in one scale: for a page, and for a terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mmaselect.selection.result import Curve, SelectionResult

#: Size of a small curve in the units of its SVG, with room for the marks at its edges.
WIDTH, HEIGHT, MARGIN = 96.0, 34.0, 4.0
#: Heights of a curve in a terminal, from low to high.
BARS = '▁▂▃▄▅▆▇█'


@dataclass(frozen=True)
class Spark:
    """The curve of one place.

    Attributes:
        path: Of an SVG: the score over the timestep.
        dots: Where timesteps that may be the best lie in the SVG.
        star: Where the pick lies; None in places that were not picked.
        score: The best score, or that of the pick.
        timestep: Where it is.
        words: All scores, for a reader who points at the curve.
        in_race: Whether some timestep was scored on as many images as the pick.
    """

    path: str
    dots: tuple[tuple[float, float], ...]
    star: tuple[float, float] | None
    score: float | None
    timestep: int
    words: str
    in_race: bool


def score_range(result: SelectionResult) -> tuple[float, float]:
    """The scale that all places share: a few bad cells do not flatten the others."""
    scores = np.concatenate([curve.scores for curve in result.per_tap])
    low, high = np.nanquantile(scores, [0.05, 1.0])
    return float(low), float(high)


def searched_features(result: SelectionResult) -> list[str]:
    """Features of a search, in the order of the result; empty where no place was searched."""
    if 'search' not in result.settings:
        return []
    return list(dict.fromkeys(curve.feature or '' for curve in result.per_tap))


def spark_rows(result: SelectionResult) -> list[tuple[int, list[Spark | None]]]:
    """Each block of a search with a small curve for each of :func:`searched_features`."""
    features = searched_features(result)
    if not features:
        return []
    curves = {(curve.block or 0, curve.feature): curve for curve in result.per_tap}
    blocks = sorted({block for block, _ in curves})
    low, high = score_range(result)
    steps = [step for curve in result.per_tap for step in curve.timesteps]
    first, last = min(steps), max(steps)

    def at(step: int, score: float) -> tuple[float, float]:
        share = 0.5 if last == first else (step - first) / (last - first)
        height = 0.5 if high == low else min(max((score - low) / (high - low), 0), 1)
        return (
            round(MARGIN + share * (WIDTH - 2 * MARGIN), 1),
            round(HEIGHT - MARGIN - height * (HEIGHT - 2 * MARGIN), 1),
        )

    def spark(block: int, feature: str) -> Spark | None:
        curve = curves.get((block, feature))
        if curve is None:
            return None
        scored = [(point, point.score) for point in curve.points if point.score is not None]
        picked = (block, feature) in result.cells
        places = {point.timestep: at(point.timestep, score) for point, score in scored}
        lines = []
        for point, score in scored:
            images = '' if point.images is None else f', {point.images} images'
            lines.append(f't = {point.timestep}: {score:.3f}{images}')
        shown = result.timestep if picked and result.timestep in places else curve.timestep
        return Spark(
            path=_path(curve, places),
            dots=tuple(
                places[step]
                for one_block, one_feature, step in result.contenders
                if (one_block, one_feature) == (block, feature) and step in places
            ),
            star=places.get(result.timestep) if picked else None,
            score=next((score for point, score in scored if point.timestep == shown), None),
            timestep=shown,
            words='\n'.join([f'{feature} of block {block}', *lines]),
            in_race=any((point.images or 0) >= result.num_images for point, _ in scored),
        )

    return [(block, [spark(block, feature) for feature in features]) for block in blocks]


def _path(curve: Curve, places: dict[int, tuple[float, float]]) -> str:
    """A line through the scores, broken where there is none."""
    parts, draws = [], False
    for step in curve.timesteps:
        if step in places:
            x, y = places[step]
            parts.append(f'{"L" if draws else "M"}{x:g} {y:g}')
        draws = step in places
    return ''.join(parts)


def spark_text(scores: Sequence[float], low: float, high: float, width: int) -> str:
    """A curve of block characters, a blank where there is no score.

    Args:
        scores: NaN where there is none.
        low: Score of the lowest character.
        high: Score of the highest.
        width: Characters at most: of several timesteps in one, the best score is shown.

    Example:
        >>> spark_text([0.0, 0.5, 1.0, 0.5, 0.0], 0.0, 1.0, 5)
        '▁▅█▅▁'
        >>> spark_text([0.0, 0.5, 1.0, 0.5], 0.0, 1.0, 2)
        '▅█'
    """
    text = ''
    for part in np.array_split(np.array(scores, float), min(width, len(scores))):
        best = max((score for score in part if not math.isnan(score)), default=None)
        if best is None:
            text += ' '
            continue
        height = 0.5 if high == low else min(max((best - low) / (high - low), 0.0), 1.0)
        text += BARS[min(int(height * len(BARS)), len(BARS) - 1)]
    return text
