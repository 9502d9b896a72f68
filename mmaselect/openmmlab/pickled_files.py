# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Pickled annotation files, which MMEngine reads for any data set whose ``ann_file`` is one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from mmengine.fileio import register_handler
from mmengine.fileio.handlers import PickleHandler

from mmaselect.untrusted import ANYTHING, load_plain, only_weights, only_weights_are_read


class PlainPickleHandler(PickleHandler):
    """MMEngine's handler, which runs no code where PyTorch's switch forbids it for checkpoints.

    All tools of this package set the switch; other processes read pickles as MMEngine does.
    """

    def load_from_fileobj(self, file: IO[bytes], **kwargs: Any) -> Any:
        if only_weights_are_read():
            return load_plain(file, **kwargs)
        return super().load_from_fileobj(file, **kwargs)


@contextmanager
def plain_values() -> Iterator[None]:
    """Read no more than plain values from pickles, unless this process trusts its files."""
    if os.environ.get(ANYTHING) == '1':
        yield
        return
    with only_weights():
        yield


def guard_pickles() -> None:
    """Have MMEngine read ``.pkl`` and ``.pickle`` by :class:`PlainPickleHandler`."""
    register_handler(['pickle', 'pkl'])(PlainPickleHandler)
