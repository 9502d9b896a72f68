# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""How well a criterion's curve over timesteps agrees with a measured one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from scipy.stats import binomtest, spearmanr


@dataclass(frozen=True)
class Agreement:
    """A criterion's pick, and what it costs.

    Attributes:
        pick: Timestep with the highest score; the smallest of equals.
        value: Measured metric at the pick.
        best_timestep: Timestep with the highest metric.
        best: That metric.
        regret: ``best - value``, in the metric's units: 0 is a perfect pick.
        within: Whether the confidence interval at the pick reaches the best metric.
        spearman: Rank correlation of score and metric over the timesteps; None if one is constant.
        at_end: Whether the pick is the first or the last timestep of the grid.
    """

    pick: int
    value: float
    best_timestep: int
    best: float
    regret: float
    within: bool
    spearman: float | None
    at_end: bool

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def agreement(
    timesteps: Sequence[int],
    scores: Sequence[float | None],
    metrics: Sequence[float],
    highs: Sequence[float],
) -> Agreement:
    """Compare a criterion's scores with a metric, timestep by timestep.

    Args:
        timesteps: Increasing.
        scores: The criterion's; None where it is undefined.
        metrics: What was measured.
        highs: Upper ends of its confidence intervals.

    Raises:
        ValueError: If lengths differ, or no score is defined.

    Example:
        >>> agreement([0, 50, 100], [0.1, 0.3, 0.2], [60.0, 70.0, 80.0], [61.0, 71.0, 81.0]).regret
        10.0
    """
    if not len(timesteps) == len(scores) == len(metrics) == len(highs):
        raise ValueError(
            f'lengths differ: {len(timesteps)} timesteps, {len(scores)} scores, {len(metrics)} '
            f'metrics, {len(highs)} upper ends'
        )
    scored = [i for i, score in enumerate(scores) if score is not None and math.isfinite(score)]
    if not scored:
        raise ValueError(f'no score is defined at any of the timesteps {list(timesteps)}')
    pick = max(scored, key=lambda i: (scores[i], -timesteps[i]))
    best = max(range(len(metrics)), key=lambda i: (metrics[i], -timesteps[i]))
    kept = [(scores[i], metrics[i]) for i in scored]
    rho = None
    if all(len(set(values)) > 1 for values in zip(*kept, strict=True)):
        rho = float(spearmanr(*zip(*kept, strict=True)).statistic)
    return Agreement(
        pick=timesteps[pick],
        value=metrics[pick],
        best_timestep=timesteps[best],
        best=metrics[best],
        regret=metrics[best] - metrics[pick],
        within=highs[pick] >= metrics[best],
        spearman=rho,
        at_end=len(timesteps) > 2 and pick in (0, len(timesteps) - 1),
    )


def wilson_interval(correct: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a proportion (Wilson, 1927).

    Args:
        correct: Successes.
        total: Trials.
        confidence: Level.

    Returns:
        Lower and upper end, between 0 and 1.
    """
    interval = binomtest(correct, total).proportion_ci(confidence, method='wilson')
    return float(interval.low), float(interval.high)
