# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Features of several timesteps as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from mmaselect.checks import choice, is_sequence, is_whole_number, keywords, shorten

FUSIONS = ('concat', 'mean')
#: Whose timestep holds where a checkpoint brings one.
SOURCES = ('checkpoint', 'config')
AUTO = 'auto'
#: Keys of a dict that says how timesteps are chosen and joined.
PLAN_KEYS = ('steps', 'fusion', 'source')
#: What names a map: its block, or its block and feature.
Key = TypeVar('Key')


def _one(value: Any) -> int | str:
    if isinstance(value, str) and value == AUTO:
        return AUTO
    if is_whole_number(value):
        return int(value)
    raise ValueError(
        f"timestep must be 'auto' or a whole number, or a list of them, got {shorten(value)}"
    )


@dataclass(frozen=True)
class TimestepPlan:
    """At which timesteps a model is read, and how their features become one.

    Attributes:
        steps: In the order in which they are joined; one may be ``'auto'``.
        fusion: ``'concat'`` joins channels, ``'mean'`` averages.
        source: Which timestep holds where a checkpoint brings one: ``'checkpoint'``, the one that
            its heads were trained at, or ``'config'``, the one that ``steps`` gives or selects.
    """

    steps: tuple[int | str, ...]
    fusion: str = 'concat'
    source: str = 'checkpoint'

    @classmethod
    def parse(cls, timestep: Any, keys: Sequence[str] = PLAN_KEYS) -> TimestepPlan:
        """A plan from what a config says.

        Args:
            timestep: ``'auto'``, a number, or a list of numbers, one of which may be ``'auto'``; or
                a dict of such ``steps``, ``fusion`` and ``source``.
            keys: The keys of a dict that are taken.

        Raises:
            ValueError: If it is anything else, empty, or names a timestep twice.
        """
        if isinstance(timestep, cls):
            return timestep
        given = {'steps': timestep}
        if isinstance(timestep, Mapping):
            given = keywords('timestep', timestep, keys)
        steps = given.get('steps', AUTO)
        listed = tuple(_one(value) for value in (steps if is_sequence(steps) else [steps]))
        if not listed or len(set(listed)) < len(listed):
            raise ValueError(
                f"timestep must be 'auto', a number, or a list of different ones, got "
                f'{shorten(steps)}'
            )
        fusion = choice('fusion', given.get('fusion', 'concat'), FUSIONS)
        source = choice("timestep's source", given.get('source', 'checkpoint'), SOURCES)
        return cls(listed, fusion, source)

    @property
    def place(self) -> int:
        """Which of the steps is the one that is picked or, where none is, stands for them."""
        return self.steps.index(AUTO) if AUTO in self.steps else 0

    @property
    def is_automatic(self) -> bool:
        """Whether one is to be selected."""
        return AUTO in self.steps

    @property
    def count(self) -> int:
        """Transformer passes per image and noise draw."""
        return len(self.steps)

    def resolved(self, picked: int) -> tuple[int, ...]:
        """All timesteps, with the picked one in its place."""
        steps = list(self.steps)
        steps[self.place] = picked
        return tuple(int(step) for step in steps)

    def channels(self, channels: int) -> int:
        """Channels of a map, from those of one timestep's."""
        return channels * (self.count if self.fusion == 'concat' else 1)

    def fuse(self, maps: Sequence[Mapping[Key, Tensor]]) -> dict[Key, Tensor]:
        """One map for each name, out of those of each timestep."""
        if len(maps) == 1:
            return dict(maps[0])
        if self.fusion == 'concat':
            return {name: torch.cat([one[name] for one in maps], 1) for name in maps[0]}
        return {name: torch.stack([one[name].float() for one in maps]).mean(0) for name in maps[0]}

    def to_tensor(self) -> Tensor:
        """What a checkpoint keeps of it: how it fuses, the place of the pick, the other steps."""
        others = [int(s) for n, s in enumerate(self.steps) if n != self.place]
        return torch.tensor([FUSIONS.index(self.fusion), self.place, *others])

    def check(self, stored: Any) -> None:
        """Check that heads of a checkpoint were trained on what this plan gives.

        Args:
            stored: Its tensor; None if it read one timestep.

        Raises:
            ValueError: If they were not.
        """
        mine = None if self.count == 1 else self.to_tensor().tolist()
        theirs = stored.tolist() if isinstance(stored, Tensor) else None
        if theirs == mine:
            return
        raise ValueError(
            f'the checkpoint was trained on {_in_words(theirs)}, but this config reads '
            f'{_in_words(mine)}: set the timestep of the backbone to what the checkpoint '
            f'was trained with'
        )


def _in_words(stored: list[int] | None) -> str:
    if stored is None:
        return 'one timestep'
    fusion, place, *others = stored
    known = FUSIONS[fusion] if 0 <= fusion < len(FUSIONS) else f'unknown ({fusion})'
    return (
        f'{len(others) + 1} timesteps (fusion {known}, {others} next to the picked one, which has '
        f'place {place})'
    )
