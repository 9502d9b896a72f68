# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Sums of a sweep that is under way, kept so that one which is killed resumes."""

from __future__ import annotations

import contextlib
import os
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmaselect.files import check_regular, clear_leftovers, written_aside
from mmaselect.logs import warn
from mmaselect.selection.criteria.base import Criterion
from mmaselect.selection.race import RoundScores
from mmaselect.selection.scoring import Meters
from mmaselect.untrusted import load_tensors

#: Seconds between two writes, at least; and a write takes no more than a 20th of the time.
SAVE_SECONDS = 30.0
_SHARE_OF_TIME = 20
#: Sums that nobody came back for are removed after 30 days.
_KEPT_SECONDS = 30 * 24 * 3600


@dataclass
class SweepProgress:
    """How far a rank is.

    A sweep goes in stages: in one, some timesteps are scored on the images that they have not
    seen yet, up to the end of a round. All ranks are in the same stage, and end it together.

    Attributes:
        stage: The number of the one under way.
        arms: The timesteps in it, each with the place where it is read: see
            :mod:`mmaselect.selection.arms`.
        goal: Rounds that these have behind them at its end.
        rounds: Arm to the rounds that it had behind it when the stage began.
        units: Pairs of a batch and a timestep that this rank has scored in the stage.
        refined: Whether finer steps have been begun.
        at_ends: Number of images at the end of a round to the scores of those who raced then: see
            :func:`~mmaselect.selection.race.on_one_scale`.
        passes: FLOPs of a transformer pass of one image to how many there were so far; 1 stands for
            the FLOPs where no place is searched, and all passes are equal.
        seconds: Time spent, so far.
    """

    stage: int = 0
    arms: list[tuple[int, int]] = field(default_factory=list)
    goal: int = 1
    rounds: dict[tuple[int, int], int] = field(default_factory=dict)
    units: int = 0
    refined: bool = False
    at_ends: dict[int, RoundScores] = field(default_factory=dict)
    passes: dict[int, int] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def plan(self) -> dict[str, Any]:
        """What all ranks must have in common."""
        return dict(
            stage=self.stage,
            arms=list(self.arms),
            goal=self.goal,
            rounds=dict(self.rounds),
            refined=self.refined,
            at_ends=dict(self.at_ends),
        )


class PartialSums:
    """The sums of one rank of one sweep, in a file.

    They go on only in the same split into batches and ranks, in which they end bit for bit as
    without a break.

    Args:
        folder: Folder of the cache.
        key: Key of the selection.
        split: Batch size, rank and number of ranks.
        order: Positions of the images, in the order in which they are scored.
    """

    def __init__(
        self, folder: Path, key: str, split: tuple[int, int, int], order: Sequence[int]
    ) -> None:
        self.order = list(order)
        batch_size, rank, world_size = split
        self.path = folder / 'partial' / f'{key}-{rank}-of-{world_size}-by-{batch_size}.pt'
        self._due = time.monotonic() + SAVE_SECONDS
        self._broken = False

    def load(self, meters: dict[int, Meters], start: Callable[[], Meters]) -> SweepProgress | None:
        """Put the stored sums into empty meters; says how far they are, None if there are none.

        Args:
            meters: Those of the grid; timesteps of a finer one are added.
            start: Makes empty ones.
        """
        grid = list(meters)
        self._clear_old()
        try:
            with zipfile.ZipFile(check_regular(self.path)) as archive:
                if (damaged := archive.testzip()) is not None:
                    raise ValueError(f'the checksum of its entry {damaged!r} does not match')
            stored = load_tensors(self.path)
            done = SweepProgress(**stored['done'])
            if stored.get('order') != self.order:
                raise ValueError('its images were taken in another order')
            meters.update({step: start() for step, _ in done.rounds if step not in meters})
            for name, meter in _named(meters):
                _restore(meter, stored['sums'][name])
        except FileNotFoundError:
            return None
        except Exception as error:  # loading raises whatever a damaged file makes it meet
            warn(f'{self.path} cannot be used ({error!r}): the selection starts from its beginning')
            reset(meters, grid)
            return None
        return done

    def save_if_due(self, meters: Mapping[int, Meters], done: SweepProgress) -> None:
        """Write the sums, if the last time was long enough ago."""
        if time.monotonic() >= self._due:
            self.save(meters, done)

    def save(self, meters: Mapping[int, Meters], done: SweepProgress) -> None:
        """Write the sums; a warning, once, if they cannot be written."""
        if self._broken:
            return
        start = time.monotonic()
        sums = {name: _states(meter) for name, meter in _named(meters)}
        try:
            with written_aside(self.path) as aside:
                torch.save(dict(order=self.order, done=asdict(done), sums=sums), aside)
        except (OSError, RuntimeError) as error:  # torch gives the latter for a full disk
            warn(f'{self.path} cannot be written ({error}): a selection that is killed starts anew')
            self._broken = True
        now = time.monotonic()
        self._due = now + max(SAVE_SECONDS, _SHARE_OF_TIME * (now - start))

    def clear(self) -> None:
        """Remove the file; there is a result now."""
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)
            self.path.parent.rmdir()  # if it was the last one

    def _clear_old(self) -> None:
        with contextlib.suppress(OSError):
            clear_leftovers(self.path.parent)
            for entry in os.scandir(self.path.parent):
                if entry.name.endswith('.pt') and (
                    time.time() - entry.stat().st_mtime > _KEPT_SECONDS
                ):
                    os.unlink(entry.path)


def reset(meters: dict[int, Meters], grid: Sequence[int]) -> None:
    """Empty those of a grid, and leave out the others."""
    for step in set(meters).difference(grid):
        del meters[step]
    for _, meter in _named(meters):
        meter.reset()


def _named(meters: Mapping[int, Meters]) -> list[tuple[str, Criterion]]:
    return [
        (f'{step}/{block}/{feature}/{name}', meter)
        for step, at_step in meters.items()
        for ((block, feature), name), meter in at_step.items()
    ]


def _states(meter: Criterion) -> dict[str, Any]:
    """A criterion's states: tensors, or lists of them, each in one piece to be small."""
    return {
        name: value.cpu() if isinstance(value, Tensor) else [tensor.cpu() for tensor in value]
        for name, value in meter.metric_state.items()
    } | {'_update_count': meter.update_count}


def _restore(meter: Criterion, states: Mapping[str, Any]) -> None:
    if set(states) != {*meter.metric_state, '_update_count'}:
        raise ValueError(f'the states of {type(meter).__name__} are others: {sorted(states)}')
    for name, value in states.items():
        if isinstance(value, Tensor):
            value = value.to(meter.device)
        elif isinstance(value, list):
            value = [tensor.to(meter.device) for tensor in value]
        setattr(meter, name, value)
