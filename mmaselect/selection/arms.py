# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""What a sweep compares: a timestep, read at one of some places."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mmaselect.diffusion import FrozenDiT, TapKey
from mmaselect.selection.scoring import StepScores

#: A timestep, and the number of a place in :attr:`Places.groups`.
Arm = tuple[int, int]


@dataclass(frozen=True)
class Places:
    """Where a timestep may be read.

    Attributes:
        groups: Each is some (block, feature) that are read together; their scores are averaged.
        count: How many of a group are read in the end, those that score best; all of them if None.
        published: The first (block, feature) of the group that a paper reads in this family, where
            a place is searched and there is such a place.
    """

    groups: tuple[tuple[TapKey, ...], ...]
    count: int | None = None
    published: TapKey | None = None

    @classmethod
    def of(cls, dit: FrozenDiT) -> Places:
        """The places of a model: one, of all that it reads, unless a search was asked for."""
        search, keys = dit.search, dit.keys
        if search is None:
            return cls((keys,))
        published = search.published
        if not search.blocks:
            # Of some blocks, one feature is picked for all.
            groups = [tuple(key for key in keys if key[1] == name) for name in dit.feature_names]
            first = None if published is None else (dit.blocks[0], published[1])
            return cls(tuple(groups), None, first)
        if search.count > 1:
            # One feature for all maps: heads and checkpoints know one.
            by_name = [tuple(key for key in keys if key[1] == name) for name in dit.feature_names]
            first = None if published is None else (keys[0][0], published[1])
            return cls(tuple(by_name), search.count, first)
        return cls(tuple((cell,) for cell in keys), None, published)

    @property
    def are_searched(self) -> bool:
        """Whether a place is picked, and not only a timestep."""
        return len(self.groups) > 1 or self.count is not None

    @property
    def taps(self) -> tuple[TapKey, ...]:
        """Every (block, feature), in the order of the groups."""
        return tuple(dict.fromkeys(tap for group in self.groups for tap in group))

    def read(self, step: StepScores, criterion: str) -> tuple[TapKey, ...]:
        """The (block, feature) of an arm whose scores count.

        Args:
            step: The arm's scores.
            criterion: Name of the one that decides.
        """
        if self.count is None or not step.is_finite:
            return step.taps
        best = sorted(step.taps, key=lambda tap: -step.values[tap, criterion]['score'])
        return tuple(sorted(best[: self.count]))

    def settings(self) -> dict[str, Any]:
        """What a result depends on, for its key; nothing where no place is searched."""
        if not self.are_searched:
            return {}
        search = dict(groups=self.groups, count=self.count, published=self.published)
        return dict(search=search)


def taps_by_timestep(arms: Sequence[Arm], places: Places) -> dict[int, tuple[TapKey, ...]]:
    """What has to be read at each timestep of some arms."""
    found: dict[int, dict[TapKey, None]] = {}
    for timestep, place in arms:
        found.setdefault(timestep, {}).update(dict.fromkeys(places.groups[place]))
    return {timestep: tuple(taps) for timestep, taps in found.items()}
