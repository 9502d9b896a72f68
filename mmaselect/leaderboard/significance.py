# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Whether two settings differ by more than their seeds do."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from scipy.stats import t as student


@dataclass(frozen=True)
class Difference:
    """The mean of one setting minus that of another, with a 95 % interval.

    Attributes:
        mean: The difference.
        low: Lower end of its interval.
        high: Upper end.
        paired: Whether runs of equal seeds were compared with each other.
    """

    mean: float
    low: float
    high: float
    paired: bool

    def __str__(self) -> str:
        """``-1.20 (-2.05 to -0.35)``; with a star where 0 is outside of the interval."""
        star = '' if self.low <= 0 <= self.high else ' *'
        return f'{self.mean:+.2f} ({self.low:+.2f} to {self.high:+.2f}){star}'


def difference(
    ours: Mapping[int | None, float], others: Mapping[int | None, float]
) -> Difference | None:
    """Compare two settings over their seeds, on the same images.

    Runs of equal seeds share the order of images, augmentation and noise, so they are compared in
    pairs (Student's t) where two or more seeds are common; else the means are (Welch's t).

    Args:
        ours: Value of each run by its seed; None is the seed of at most one.
        others: Others of the other setting.

    Returns:
        None if one of them has fewer than two runs: nothing is known of the spread then.

    Example:
        >>> print(difference({0: 80.0, 1: 82.0, 2: 84.0}, {0: 81.0, 1: 83.1, 2: 84.9}))
        -1.00 (-1.25 to -0.75) *
    """
    if min(len(ours), len(others)) < 2:
        return None
    common = sorted(seed for seed in ours if seed is not None and seed in others)
    mean: float
    if len(common) >= 2:
        gaps = [ours[seed] - others[seed] for seed in common]
        mean, freedom = statistics.mean(gaps), float(len(gaps) - 1)
        error = statistics.stdev(gaps) / math.sqrt(len(gaps))
    else:
        sides = [list(side.values()) for side in (ours, others)]
        mean = statistics.mean(sides[0]) - statistics.mean(sides[1])
        parts = [statistics.variance(side) / len(side) for side in sides]
        error = math.sqrt(sum(parts))
        spread = sum(p**2 / (len(s) - 1) for p, s in zip(parts, sides, strict=True))
        freedom = sum(parts) ** 2 / spread if spread else float(sum(map(len, sides)) - 2)
    half = float(student.ppf(0.975, freedom)) * error
    return Difference(mean, mean - half, mean + half, len(common) >= 2)
