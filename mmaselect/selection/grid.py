# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Timestep grids as users write them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from mmaselect.checks import is_sequence, is_whole_number, shorten

#: Every 25th timestep of the usual 1000: 40 points.
DEFAULT_GRID = '0:1000:25'
#: A longer grid is a slip.
MAX_TIMESTEPS = 100_000


def parse_timesteps(spec: str | int | Sequence[int], num_train_timesteps: int) -> list[int]:
    """A sorted list of distinct timesteps.

    Args:
        spec: ``'START:STOP:STEP'`` with Python's rules (STOP is left out), a comma-separated list,
            one timestep, or a sequence of them.
        num_train_timesteps: Length T of the training schedule; timesteps are 0..T-1.

    Raises:
        ValueError: If the grid is empty, malformed or out of range.

    Example:
        >>> parse_timesteps('0:1000:250', 1000)
        [0, 250, 500, 750]
        >>> parse_timesteps([80, 0], 1000)
        [0, 80]
    """
    steps = read_grid(spec)
    outside = [step for step in steps if not 0 <= step < num_train_timesteps]
    if outside:
        raise ValueError(
            f'timesteps={shorten(spec)} leaves the training schedule: {outside[:5]} not in 0 '
            f'(clean) to {num_train_timesteps - 1} (noise)'
        )
    return sorted(set(steps))


@dataclass(frozen=True)
class TimestepGrid:
    """The timesteps that a sweep searches.

    Attributes:
        coarse: All that are scored at first, sorted.
        spacing: Spacing of the finer steps from the best of these; None for no finer steps.

    Example:
        >>> grid = TimestepGrid.parse('0:1000:250', 1000, spacing=100)
        >>> grid.coarse, grid.next_to(250), grid.next_to(0)
        ((0, 250, 500, 750), [150, 350], [100])
    """

    coarse: tuple[int, ...]
    spacing: int | None = None

    @classmethod
    def parse(
        cls, spec: str | int | Sequence[int], num_train_timesteps: int, spacing: int | None = None
    ) -> TimestepGrid:
        """A grid from what a user wrote: see :func:`parse_timesteps`.

        Raises:
            ValueError: If the grid is empty, malformed or out of range.
        """
        return cls(tuple(parse_timesteps(spec, num_train_timesteps)), spacing)

    def next_to(self, timestep: int) -> list[int]:
        """Timesteps one finer step below and above, within the grid; none without a spacing."""
        if self.spacing is None:
            return []
        near = (timestep - self.spacing, timestep + self.spacing)
        return [step for step in near if self.coarse[0] <= step <= self.coarse[-1]]

    @property
    def reachable(self) -> list[int]:
        """All timesteps that may be scored: the grid, and where finer steps may lead to."""
        if self.spacing is None:
            return list(self.coarse)
        first, last = self.coarse[0], self.coarse[-1]
        found = set(self.coarse)
        for step in {step % self.spacing for step in self.coarse}:
            start = first + (step - first) % self.spacing
            found.update(range(start, last + 1, self.spacing))
        return sorted(found)

    @property
    def has_finer_steps(self) -> bool:
        """Whether the spacing is below the largest gap of the grid."""
        gaps = [after - before for before, after in pairwise(self.coarse)]
        return self.spacing is not None and self.spacing < max(gaps, default=0)

    def settings(self) -> dict[str, Any]:
        """What a result depends on, for its key."""
        spacing = {} if self.spacing is None else dict(finer_steps=self.spacing)
        return dict(timesteps=list(self.coarse), **spacing)


def read_grid(spec: Any) -> list[int]:
    """The timesteps that a user wrote, in the order in which they stand.

    Args:
        spec: See :func:`parse_timesteps`.

    Raises:
        ValueError: If the grid is empty, malformed or longer than a training schedule.
    """
    form = "write 'START:STOP:STEP' (STOP is left out), for example '0:1000:25', or a list"
    error = ValueError(f'timesteps={shorten(spec)} is not a timestep grid: {form}')
    steps: Sequence[int]
    if isinstance(spec, str):
        separator = ':' if ':' in spec else ','
        parts = [part.strip() for part in spec.split(separator)]
        if separator == ',':
            parts = [part for part in parts if part]
        if not all(re.fullmatch(r'[+-]?[0-9]{1,18}', part) for part in parts):
            raise error
        numbers = [int(part) for part in parts]
        if separator == ',':
            steps = numbers
        elif len(numbers) not in (2, 3) or numbers[2:] == [0]:
            raise error
        else:
            steps = range(*numbers)
    elif is_whole_number(spec):
        steps = [int(spec)]
    elif isinstance(spec, range):
        steps = spec
    elif is_sequence(spec) and all(is_whole_number(step) for step in spec):
        steps = [int(step) for step in spec]
    else:
        raise error
    if not steps:
        raise ValueError(f'timesteps={shorten(spec)} is an empty grid: {form}')
    if len(steps) > MAX_TIMESTEPS:
        raise ValueError(
            f'timesteps={shorten(spec)} has {len(steps)} points, more than any training schedule '
            f'({MAX_TIMESTEPS}): {form}'
        )
    return list(steps)
