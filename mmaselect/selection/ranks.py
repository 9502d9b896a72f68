# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Work that all ranks share, and that fails on all of them if it fails on one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from mmengine.dist import all_gather_object, broadcast_object_list

Answer = TypeVar('Answer')


def gather_answers(work: Callable[[], Answer]) -> list[Answer]:
    """Run a function on every rank, and give every rank the answers of all.

    A rank that failed must not leave the others waiting in a collective: it joins this one first.

    Args:
        work: Called once on each rank; its answer is pickled.

    Returns:
        list: By rank; of one answer outside of a distributed run.

    Raises:
        Exception: What ``work`` raised here.
        RuntimeError: If it failed on another rank.
    """
    answer: Any = None
    error: Exception | None = None
    try:
        answer = work()
    except Exception as caught:
        error = caught
    shares = all_gather_object((answer, None if error is None else repr(error)))
    if error is not None:
        raise error
    failed = [f'rank {i}: {message}' for i, (_, message) in enumerate(shares) if message]
    if failed:
        raise RuntimeError(f'timestep selection failed on another rank: {"; ".join(failed)}')
    return [share for share, _ in shares]


def from_rank_zero(value: Answer) -> Answer:
    """Rank 0's value, on every rank."""
    shared = [value]
    broadcast_object_list(shared)
    return shared[0]
