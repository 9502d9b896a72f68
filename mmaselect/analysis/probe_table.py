# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""What ``probe_timesteps.py`` measured, as tables over timesteps."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmaselect.analysis.result_folder import read_settings
from mmaselect.analysis.stats import Agreement, agreement
from mmaselect.diffusion import TapKey


@dataclass(frozen=True)
class MetricCurve:
    """A metric over timesteps, for one block and feature.

    Attributes:
        values: In percent.
        lows: Lower ends of the 95 % intervals.
        highs: Upper ends.
    """

    values: list[float]
    lows: list[float]
    highs: list[float]


@dataclass(frozen=True)
class ProbeTable:
    """A grid of timesteps x blocks x features.

    Attributes:
        metric: ``'accuracy'`` or ``'mIoU'``.
        timesteps: Increasing.
        curves: (block, feature) to its curve.
    """

    metric: str
    timesteps: list[int]
    curves: dict[TapKey, MetricCurve]

    @classmethod
    def from_steps(cls, steps: Sequence[dict[str, Any]]) -> ProbeTable:
        """From stored results of timesteps.

        Raises:
            ValueError: If ``steps`` is empty.
        """
        if not steps:
            raise ValueError('no timestep was probed yet: run probe_timesteps.py first')
        steps = sorted(steps, key=lambda step: step['timestep'])
        curves: dict[TapKey, MetricCurve] = {}
        for step in steps:
            for row in step['probes']:
                curve = curves.setdefault((row['block'], row['feature']), MetricCurve([], [], []))
                curve.values.append(row['value'])
                curve.lows.append(row['low'])
                curve.highs.append(row['high'])
        return cls(steps[0]['metric'], [step['timestep'] for step in steps], curves)

    def agreement(self, tap: TapKey, scores: Sequence[float | None]) -> Agreement:
        """How well scores over the timesteps agree with the metric of a block and feature."""
        curve = self.curves[tap]
        return agreement(self.timesteps, scores, curve.values, curve.highs)


def read_steps(folder: str | Path) -> list[dict[str, Any]]:
    """All timesteps that are stored in a folder of results, in order.

    Raises:
        FileNotFoundError: If it is not a folder of results.
    """
    read_settings(folder)
    paths = sorted((Path(folder) / 'timesteps').glob('t*.json'))
    steps = [json.loads(path.read_text(encoding='utf-8')) for path in paths]
    return sorted(steps, key=lambda step: step['timestep'])


def scores_over(steps: Sequence[dict[str, Any]], criterion: str, tap: TapKey) -> list[float | None]:
    """A criterion's scores of one block and feature over stored timesteps."""
    return [
        next(
            row['score']
            for row in step['criteria']
            if (row['criterion'], row['block'], row['feature']) == (criterion, *tap)
        )
        for step in steps
    ]
