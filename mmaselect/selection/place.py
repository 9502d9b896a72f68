# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Where to read: block and feature picked together with the timestep, and several features of one
pass. Pure functions.

The score of the default criterion means the same in every block and feature of a model: how far an
image's other view stands out among the views of all images. So the cell with the highest score is
picked among all (block, feature) and timesteps. No block is left out: with a ridge of 0.02 early
blocks win where they are best, and hardly ever else; docs/criteria.md has the measurements.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import t as student
from torch import Tensor

from mmaselect.diffusion import TapKey
from mmaselect.selection.criteria.view_pairs import (
    SENSITIVITY_RIDGE,
    standardized_match,
    whiten_pairs,
)
from mmaselect.selection.race import linearize

#: A (block, feature) at a timestep.
Cell = tuple[TapKey, int]


@dataclass(frozen=True)
class Place:
    """Where and when to read.

    Attributes:
        block: Its index.
        feature: Its name.
        timestep: The one that scores best there.
        score: Score of the cell.
        contenders: All cells that the images cannot tell from the best one, the best first.
        decided: False where the published place was kept because it is a contender.
    """

    block: int
    feature: str
    timestep: int
    score: float
    contenders: tuple[Cell, ...]
    decided: bool = True


def choose_place(
    terms: Mapping[Cell, np.ndarray],
    published: TapKey | None = None,
    confidence: float = 0.95,
) -> Place:
    """Pick block, feature and timestep together: the cell that scores best.

    Args:
        terms: Cell to what each image adds to its score, (N, 2), as in
            :attr:`~mmaselect.selection.scoring.StepScores.per_image`: the same images in the same
            order in all cells. Leave out cells whose features were not finite.
        published: The place that the model's authors read. It is kept, at its own best timestep,
            unless the images say that another place is better.
        confidence: One-sided, of each comparison with the best cell. Use an ordinary level here and
            not that of a race: at 0.999 the middle query was a contender in 6 of 16 selections, and
            lost up to 14 points of accuracy there.

    Raises:
        ValueError: If there is no cell, or cells saw different numbers of images.

    Example:
        >>> images = np.ones(8)
        >>> terms = {((2, 'query'), 0): 0.5 * images, ((3, 'key'), 50): 0.9 * images}
        >>> terms = {cell: np.stack([value, images], 1) for cell, value in terms.items()}
        >>> place = choose_place(terms)
        >>> place.block, place.feature, place.timestep
        (3, 'key', 50)
    """
    counts = {len(rows) for rows in terms.values()}
    if len(counts) != 1:
        raise ValueError(
            f'cells must have been scored on the same images, got {sorted(counts)} images: give '
            f'one array (N, 2) for each cell'
        )
    (count,) = counts
    cells = list(terms)
    scores, parts = linearize(np.stack([terms[cell] for cell in cells]).astype(float))
    order = np.argsort(-scores, kind='stable')
    best = order[0]
    behind = np.zeros(len(cells), bool)
    if count > 1:
        error = (parts[best] - parts).std(1, ddof=1) / np.sqrt(count)
        behind = scores[best] - scores > student.ppf(confidence, count - 1) * error
    contenders = tuple(cells[i] for i in order if not behind[i])
    kept = [cell for cell in contenders if cell[0] == published]
    chosen = kept[0] if kept else cells[best]
    (block, feature), timestep = chosen
    score = float(scores[cells.index(chosen)])
    decided = chosen[0] == cells[best][0]
    return Place(block, feature, timestep, score, contenders, decided)


def joined_score(descriptors: Sequence[Tensor], ridge: float = SENSITIVITY_RIDGE) -> float:
    """Sensitivity (d') of several features of one pass, joined.

    Each feature is scaled to one mean variance first: that of the channels of a diffusion
    transformer differs by orders of magnitude from feature to feature.

    Args:
        descriptors: Descriptors of each feature: (N, 2, D), the mean feature of both views of N
            images.
        ridge: See :func:`~mmaselect.selection.criteria.view_pairs.whiten_pairs`.

    Returns:
        float: What :class:`~mmaselect.selection.criteria.InstanceSensitivity` gives for the
        concatenation.
    """
    scaled = []
    for rows in descriptors:
        rows = rows.double() - rows.double().mean((0, 1))
        deviation = rows.square().mean().sqrt()
        scaled.append(rows / deviation if deviation > 0 else rows)
    first, second = torch.cat(scaled, 2).unbind(1)
    return float(standardized_match(*whiten_pairs(first, second, ridge)).mean())


def choose_features(
    descriptors: Mapping[TapKey, Tensor],
    first: TapKey,
    count: int,
    ridge: float = SENSITIVITY_RIDGE,
) -> dict[TapKey, float]:
    """Pick several features of one pass that are good together.

    Greedy: to the features so far comes the one whose joined score is highest. All blocks of the
    pass may be candidates, early ones too: what they add is what the later ones lack. The joined
    score says which feature to add and not how many: it tends to fall with the width, while
    probes still gain.

    Args:
        descriptors: (block, feature) to (N, 2, D), see :func:`joined_score`; all at one timestep.
        first: The best place by itself, from :func:`choose_place`.
        count: How many to pick, ``first`` included.
        ridge: See :func:`joined_score`.

    Returns:
        dict: The features in the order in which they were picked, ``first`` first, to the joined
        score of each with those before it.

    Raises:
        ValueError: If ``first`` is not a candidate, or there are fewer candidates than wanted.
    """
    if first not in descriptors:
        raise ValueError(f'{first} is not among the candidates {sorted(descriptors)}')
    if not 1 <= count <= len(descriptors):
        raise ValueError(
            f'from 1 to {len(descriptors)} features can be picked from {len(descriptors)} '
            f'candidates, got {count}'
        )
    chosen = {first: joined_score([descriptors[first]], ridge)}
    while len(chosen) < count:
        before = [descriptors[tap] for tap in chosen]
        scores = {
            tap: joined_score([*before, rows], ridge)
            for tap, rows in descriptors.items()
            if tap not in chosen
        }
        added = max(scores, key=lambda tap: scores[tap])
        chosen[added] = scores[added]
    return chosen
