# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""What a selection costs in FLOPs: said before a search of places, and with its result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mmaselect.terminal.amounts import bytes_in_words, flops_in_words

if TYPE_CHECKING:
    from mmaselect.diffusion import FrozenDiT
    from mmaselect.diffusion.pass_cost import PassCost


@dataclass(frozen=True)
class SweepCost:
    """What a selection cost, with the depth at which each pass ended.

    A full sweep reads all places at all timesteps that can be picked, on all images; where their
    number is found by the sweep, on those that it begins with, or as many as the pick has seen.

    Attributes:
        of_full: FLOPs of the transformer's passes, as a share of those of a full sweep.
        flops: These FLOPs, two for each multiply-add; None where no place is searched, since all
            passes are equal then.
        of_default: The same FLOPs as a share of those of a full sweep of ``default`` alone; None
            where that was not among the places.
        default: (block, feature) that the family reads where nothing is searched.
    """

    of_full: float
    flops: int | None = None
    of_default: float | None = None
    default: tuple[int, str] | None = None

    @classmethod
    def of(cls, passes: Mapping[int, int], full: int, cost: PassCost | None) -> SweepCost:
        """The cost of a sweep.

        Args:
            passes: FLOPs of a pass, or any one number where all are equal, to how many there were.
            full: Passes of a full sweep.
            cost: What a pass costs; None where no place is searched.
        """
        if cost is None:
            return cls(sum(passes.values()) / full)
        flops = sum(each * count for each, count in passes.items())
        of_full = flops / (full * cost.whole)
        if cost.default is None:
            return cls(of_full, flops)
        return cls(of_full, flops, flops / (full * cost.to([cost.default])), cost.default)

    @classmethod
    def parse(cls, stored: Mapping[str, Any]) -> SweepCost:
        """A cost as JSON keeps it."""
        default = stored.get('default')
        return cls(**{**stored, 'default': None if default is None else tuple(default)})

    def __str__(self) -> str:
        if self.flops is None:
            return f'{100 * self.of_full:.0f} % of the passes of a full sweep'
        said = f'in FLOPs {100 * self.of_full:.0f} % of a full sweep of all places'
        if self.of_default is not None and self.default is not None:
            block, feature = self.default
            said += (
                f', {100 * self.of_default:.0f} % of one of the default place '
                f'({feature} of block {block})'
            )
        return said


def search_in_words(dit: FrozenDiT, cost: PassCost) -> str:
    """What a search of places takes, and how to bound it.

    Args:
        dit: The model, whose search it is.
        cost: What a pass of it costs.

    Raises:
        ValueError: If it searches nothing.
    """
    search = dit.search
    if search is None:
        raise ValueError('blocks and feature are given: there is no search')
    features = _counted(len(dit.feature_names), 'feature')
    whole = f'up to {flops_in_words(cost.whole)} for a pass of an image'
    if not search.blocks:
        first = flops_in_words(cost.to((block, dit.feature_names[0]) for block in dit.blocks))
        return f'a search of {features} takes {whole}; {dit.feature_names[0]} alone {first}'
    said = (
        f'a search of {_counted(len(dit.blocks), "block")} and {features} holds '
        f'{bytes_in_words(cost.weights)} of weights, and takes {whole}'
    )
    if cost.default is None or cost.default_weights is None:
        return said
    block, feature = cost.default
    one = cost.to([cost.default])
    said += (
        f'; the default, {feature} of block {block}, {bytes_in_words(cost.default_weights)} and '
        f'{flops_in_words(one)} ({cost.whole / one:.1f} times less)'
    )
    if block < max(dit.blocks) and search.count <= block + 1:
        count = '' if search.count == 1 else f':{search.count}'
        said += f". To search up to block {block} only: blocks='auto{count}:<={block}'"
    return said


def _counted(number: int, noun: str) -> str:
    return f'{number} {noun}{"s"[: number != 1]}'
