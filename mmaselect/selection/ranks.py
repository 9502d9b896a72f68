# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Work that all ranks share, and that fails on all of them if it fails on one.

A rank that dies or hangs must not leave the others waiting in a collective without a word. So each
tells the others, in the store of the process group, how far it is, and none enters a collective
before all have said that they are done. One without news for :func:`rank_timeout` seconds ends the
others with an error that names it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from torch import distributed

Answer = TypeVar('Answer')

#: Seconds without news after which a rank counts as lost.
DEFAULT_RANK_TIMEOUT = 600.0
#: First and longest pause between two looks at the others.
_POLL_SECONDS = (0.01, 0.5)
_ALL_ARE_THERE = 'all are there'


def rank_timeout() -> float:
    """``$MMASELECT_RANK_TIMEOUT`` in seconds, or 600.

    Raises:
        ValueError: If it is not a positive number.
    """
    text = os.environ.get('MMASELECT_RANK_TIMEOUT') or str(DEFAULT_RANK_TIMEOUT)
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        raise ValueError(f'MMASELECT_RANK_TIMEOUT must be a number of seconds, got {text!r}')
    return seconds


def rank_and_size() -> tuple[int, int]:
    """This process's rank and the number of ranks; (0, 1) outside of a distributed run."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def _gather(value: Answer) -> list[Answer]:
    """Every rank's value, by rank."""
    _, world_size = rank_and_size()
    if world_size == 1:
        return [value]
    values: list[Any] = [None] * world_size
    distributed.all_gather_object(values, value)
    return values


class Progress:
    """What a rank tells the others of its work, and what it hears from them.

    Outside of a distributed run it does nothing.
    """

    #: Work that this process has shared so far: all ranks share the same, in the same order.
    _count = 0

    def __init__(self) -> None:
        self.rank, self.world_size = rank_and_size()
        self._shared: distributed.Store | None = None
        self._told = 0.0
        if self.world_size > 1:
            Progress._count += 1
            store = distributed.distributed_c10d._get_default_store()
            prefix = f'mmaselect/{Progress._count}'
            self._shared = distributed.PrefixStore(prefix, store)

    @property
    def _store(self) -> distributed.Store:
        assert self._shared is not None, 'one process alone shares nothing'
        return self._shared

    def tell(self, doing: str) -> None:
        """Say what this rank begins to do now, once a second at most."""
        if self._shared is not None and time.monotonic() - self._told > 1:
            self._told = time.monotonic()
            self._store.set(f'doing/{self.rank}', f'{time.time()} {doing}')

    def wait(self) -> None:
        """Wait until all ranks have come here.

        Rank 0 watches all others, and these watch rank 0.

        Raises:
            RuntimeError: If a rank is lost.
        """
        if self._shared is None:
            return
        limit = rank_timeout()
        try:
            self._store.set(f'done/{self.rank}', 'yes')
            if self.rank == 0:
                self._watch(range(1, self.world_size), limit)
                self._store.set('verdict', _ALL_ARE_THERE)
            else:
                self._watch([0], limit)
                self._hear_verdict(limit)
        except distributed.DistError as error:
            raise RuntimeError(
                f'timestep selection: rank {self.rank} cannot reach the store of the process '
                f'group, so the process that keeps it, rank 0 or its launcher, has ended ({error})'
            ) from error

    def _watch(self, ranks: Any, limit: float) -> None:
        """Wait until ranks are done, each as long as it has news."""
        news = {rank: ('nothing yet', time.monotonic()) for rank in ranks}
        pause, longest = _POLL_SECONDS
        while news:
            for rank, (last, since) in list(news.items()):
                if self._store.check([f'done/{rank}']):
                    del news[rank]
                    continue
                now = self._read(f'doing/{rank}', last)
                if now != last:
                    news[rank] = (now, time.monotonic())
                elif time.monotonic() - since > limit:
                    self._lose(rank, last.partition(' ')[2] or last, limit)
            time.sleep(pause)
            pause = min(longest, pause * 2)
            if self.rank == 0:
                self.tell('waiting for other ranks')

    def _lose(self, rank: int, doing: str, limit: float) -> None:
        message = (
            f'timestep selection: rank {rank} has died or hangs: no news from it for {limit:g} s; '
            f'the last was: {doing}. Look into its own output. MMASELECT_RANK_TIMEOUT sets how '
            f'many seconds the others wait'
        )
        if self.rank == 0:
            self._store.set('verdict', message)
            time.sleep(2 * _POLL_SECONDS[1])  # the store may end with this process: let them read
        raise RuntimeError(message)

    def _hear_verdict(self, limit: float) -> None:
        """Rank 0 is done with its own work; wait for what it says of the other ranks."""
        last, since, pause = '', time.monotonic(), _POLL_SECONDS[0]
        while not self._store.check(['verdict']):
            now = self._read('doing/0', last)
            if now != last:
                last, since = now, time.monotonic()
            elif time.monotonic() - since > limit:
                self._lose(0, last.partition(' ')[2] or 'waiting for other ranks', limit)
            time.sleep(pause)
            pause = min(_POLL_SECONDS[1], pause * 2)
        if (verdict := self._read('verdict', '')) != _ALL_ARE_THERE:
            raise RuntimeError(verdict)

    def _read(self, key: str, default: str) -> str:
        return self._store.get(key).decode() if self._store.check([key]) else default


def gather_answers(work: Callable[[Callable[[str], None]], Answer]) -> list[Answer]:
    """Run a function on every rank, and give every rank the answers of all.

    A rank that failed must not leave the others waiting in a collective: it joins this one first.

    Args:
        work: Called once on each rank, with a function by which it says what it is about to do: a
            rank that says nothing for :func:`rank_timeout` seconds counts as lost. Its answer is
            pickled.

    Returns:
        list: By rank; of one answer outside of a distributed run.

    Raises:
        Exception: What ``work`` raised here.
        RuntimeError: If it failed on another rank, or a rank is lost.
    """
    answer: Any = None
    error: Exception | None = None
    progress = Progress()
    try:
        answer = work(progress.tell)
    except Exception as caught:
        error = caught
    try:
        progress.wait()
    except RuntimeError as lost:
        raise (lost if error is None else error) from None
    shares = _gather((answer, None if error is None else repr(error)))
    if error is not None:
        raise error
    failed = [f'rank {i}: {message}' for i, (_, message) in enumerate(shares) if message]
    if failed:
        raise RuntimeError(f'timestep selection failed on another rank: {"; ".join(failed)}')
    return [share for share, _ in shares]


def check_agreement(shares: Sequence[Mapping[str, Any]]) -> None:
    """Check that all ranks found the same.

    Args:
        shares: What each rank found, by its name in a message.

    Raises:
        RuntimeError: If a rank differs from rank 0; the message names ranks and facts.
    """
    differences = [
        f'{name} of rank {rank} is {share[name]!r}, of rank 0 {shares[0][name]!r}'
        for rank, share in enumerate(shares)
        for name in share
        if share[name] != shares[0][name]
    ]
    if differences:
        raise RuntimeError(
            f'the ranks of timestep selection do not see the same, so that their sums cannot be '
            f'added: {"; ".join(differences[:4])}. Give all ranks the same images, model and '
            f'versions'
        )


def from_rank_zero(value: Answer) -> Answer:
    """Rank 0's value, on every rank."""
    shared = [value]
    if rank_and_size()[1] > 1:
        distributed.broadcast_object_list(shared)
    return shared[0]
