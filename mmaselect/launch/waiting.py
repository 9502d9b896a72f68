# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Processes of a run that wait for others until these have their model, and say for what.

One node may download a model, or embed a prompt, for an hour, while the others have both in their
caches. Nothing would be in the log of the first process, which waits in a collective.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

from mmengine.runner import Runner
from torch import distributed, nn

from mmaselect.logs import logger

#: Seconds between two lines of a process that waits.
LINE_SECONDS = 30.0
_POLL_SECONDS = 0.05
_HERE, _DOING = 'mmaselect/model/{}', 'mmaselect/doing/{}'


def _store() -> distributed.Store:
    return distributed.distributed_c10d._get_default_store()


class _LastWords(logging.Handler):
    """Tells the other processes what this one says that it does."""

    def emit(self, record: logging.LogRecord) -> None:
        if distributed.is_available() and distributed.is_initialized():
            said = f'({socket.gethostname()}): {record.getMessage()}'
            _store().set(_DOING.format(distributed.get_rank()), said)


@contextmanager
def telling_others() -> Iterator[None]:
    """What this process logs until the block ends is what it says to those that wait for it."""
    handler = _LastWords(logging.INFO)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def wait_for_models() -> None:
    """Return when all processes have their model.

    The first process logs whom it waits for, and what those said last.

    Raises:
        RuntimeError: If the first process has ended.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return
    try:
        _wait(_store(), distributed.get_rank())
    except distributed.DistNetworkError as error:
        raise RuntimeError(
            'the first process of the run ended while this one built its model, or waited: its '
            'log says why'
        ) from error


def _wait(store: distributed.Store, rank: int) -> None:
    store.set(_HERE.format(rank), 'yes')
    told = time.monotonic()
    left = list(range(distributed.get_world_size()))
    while left := [one for one in left if not store.check([_HERE.format(one)])]:
        time.sleep(_POLL_SECONDS)
        if rank == 0 and time.monotonic() - told > LINE_SECONDS:
            told = time.monotonic()
            logger.info(f'waiting for {"; ".join(map(_in_words, left))}')


class PatientRunner(Runner):
    """MMEngine's Runner, which waits for all models before it wraps its own: DDP compares them."""

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        wait_for_models()
        return super().wrap_model(model_wrapper_cfg, model)


def _in_words(rank: int) -> str:
    key = _DOING.format(rank)
    said = _store().get(key).decode() if _store().check([key]) else 'which builds its model'
    return f'process {rank} {said}'
