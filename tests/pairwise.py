# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Combinations of options, few enough for each day."""

import itertools
from collections.abc import Iterable, Sequence

import pytest


def combinations(*axes: Sequence) -> Iterable:
    """Parameters for every combination of options, all but a few of them marked ``thorough``.

    The few hold each pair of options of any two axes at least once: a mistake in one option, or
    in how two of them work together, is found without the others.

    Args:
        axes: The options of each argument.
    """
    every = list(itertools.product(*(range(len(axis)) for axis in axes)))

    def pairs(chosen):
        return set(itertools.combinations(enumerate(chosen), 2))

    missing = set().union(*map(pairs, every))
    daily = set()
    while missing:
        best = max(every, key=lambda chosen: len(pairs(chosen) & missing))
        daily.add(best)
        missing -= pairs(best)
    return [
        pytest.param(
            *(axis[index] for axis, index in zip(axes, chosen, strict=True)),
            marks=() if chosen in daily else pytest.mark.thorough,
        )
        for chosen in every
    ]
