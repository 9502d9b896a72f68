# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Timestep grids as users write them."""

from __future__ import annotations

from collections.abc import Sequence

#: Every 25th timestep of the usual 1000: 40 points.
DEFAULT_GRID = '0:1000:25'


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
    form = "write 'START:STOP:STEP' (STOP is left out), for example '0:1000:25', or a list"
    try:
        if isinstance(spec, str) and ':' in spec:
            parts = [int(part) for part in spec.split(':')]
            if len(parts) not in (2, 3):
                raise ValueError(spec)
            steps = list(range(*parts))
        elif isinstance(spec, str):
            steps = [int(part) for part in spec.split(',') if part.strip()]
        elif isinstance(spec, int):
            steps = [spec]
        else:
            steps = [int(step) for step in spec]
    except (TypeError, ValueError) as error:
        raise ValueError(f'timesteps={spec!r} is no timestep grid: {form}') from error
    if not steps:
        raise ValueError(f'timesteps={spec!r} is an empty grid: {form}')
    outside = [step for step in steps if not 0 <= step < num_train_timesteps]
    if outside:
        raise ValueError(
            f'timesteps={spec!r} leaves the training schedule: {outside[:5]} not in 0 (clean) to '
            f'{num_train_timesteps - 1} (noise)'
        )
    return sorted(set(steps))
