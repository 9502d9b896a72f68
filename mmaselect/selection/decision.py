# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Whether the images decide a pick, and how many would. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

from mmaselect.diffusion import TapKey
from mmaselect.selection.race import compare
from mmaselect.selection.scoring import StepScores

#: One-sided, of each comparison with the pick. A race is stricter, since what it drops is lost.
CONFIDENCE = 0.95
#: A pick that would take more images than this is one of equals.
MOST_IMAGES = 100_000


@dataclass(frozen=True)
class Decision:
    """Whether the images tell the pick from timesteps that lie far from it.

    Attributes:
        decided: False if a timestep beyond the pick's neighborhood may be as good.
        rivals: All timesteps that the images cannot tell from the pick, and the pick.
        images_needed: About how many images would tell the far ones from the pick; None where the
            pick is decided, or where more than :data:`MOST_IMAGES` would be needed.
    """

    decided: bool
    rivals: tuple[int, ...] = ()
    images_needed: int | None = None


def neighborhood(pick: int, timesteps: Sequence[int], grid: Sequence[int]) -> set[int]:
    """Timesteps that are at most a tenth of a grid away from a pick, and at least one step.

    Args:
        pick: A timestep.
        timesteps: Those that are asked about.
        grid: The coarse grid, sorted.

    Example:
        >>> sorted(neighborhood(50, [0, 25, 50, 100, 300], range(0, 500, 25)))
        [0, 25, 50, 100]
    """
    near = max(1, len(grid) // 10)
    places = np.interp([pick, *timesteps], grid, range(len(grid)))
    return {step for step, place in zip(timesteps, places[1:], strict=True)
            if abs(place - places[0]) <= near}  # fmt: skip


def decide(
    steps: Sequence[StepScores],
    criterion: str,
    taps: Sequence[TapKey] | Callable[[StepScores], Sequence[TapKey]],
    grid: Sequence[int],
    enough: int = 0,
) -> Decision | None:
    """Whether the images tell the best timestep from those that lie far from it.

    Args:
        steps: Scores of the timesteps that saw all images of the sweep.
        criterion: The one that decides.
        taps: The (block, feature) whose scores are averaged, or what gives them for a timestep.
        grid: The coarse grid, sorted.
        enough: Images below which differences say nothing, and every pick is undecided.

    Returns:
        None for a criterion that does not say what each image adds.
    """

    def taps_of(step: StepScores) -> Sequence[TapKey]:
        return taps(step) if callable(taps) else taps

    usable = [step for step in steps if step.mean(taps_of(step), criterion, 'score') is not None]
    if any((tap, criterion) not in step.per_image for step in usable for tap in taps_of(step)):
        return None
    found = compare(usable, criterion, taps_of)
    pick = found.timesteps[found.leader]
    bound = float(student.ppf(CONFIDENCE, found.count - 1)) if found.count > 1 else math.inf
    rivals = [
        step
        for step, lag, error in zip(found.timesteps, found.lag, found.error, strict=True)
        if step == pick or lag <= bound * error
    ]
    if found.count < enough:
        return Decision(False, tuple(found.timesteps), enough)
    far = set(rivals) - neighborhood(pick, rivals, grid)
    if not far:
        return Decision(True, tuple(rivals))
    needed = 0.0
    for step, lag, error in zip(found.timesteps, found.lag, found.error, strict=True):
        if step in far:
            # Standard errors shrink with the square root of the number of images.
            needed = max(needed, found.count * (bound * error / lag) ** 2 if lag > 0 else math.inf)
    return Decision(False, tuple(rivals), math.ceil(needed) if needed <= MOST_IMAGES else None)
