# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""The one place where pickled files are read: tensors and plain values, never code.

Safetensors and JSON hold no code and need no guard. Files that ``torch.save`` wrote do, whichever
code reads them: our code through :func:`load_tensors`, and libraries (MMEngine, accelerate) within
:func:`only_weights`. A test walks the sources and refuses any other way.

Knows no torch before a file is read, so that ``--help`` is there at once.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

#: Switches of PyTorch's own, which every ``torch.load`` of a process obeys.
ONLY_WEIGHTS = 'TORCH_FORCE_WEIGHTS_ONLY_LOAD'
ANYTHING = 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'


def force_only_weights(trust: bool = False) -> None:
    """Have every ``torch.load`` of this process, and of those it starts, read tensors alone.

    Args:
        trust: Read anything instead, and run the code in it.
    """
    on, off = (ANYTHING, ONLY_WEIGHTS) if trust else (ONLY_WEIGHTS, ANYTHING)
    os.environ.pop(off, None)
    os.environ[on] = '1'


def what_was_refused(error: UnpicklingError) -> str:
    """The object that a file names, without PyTorch's advice to read the file all the same."""
    text = str(error)
    named = re.search(r'GLOBAL (\S+)', text)
    if named is not None:
        return named[1]
    return text.rpartition('WeightsUnpickler error: ')[2].strip().splitlines()[0]


@contextmanager
def only_weights() -> Iterator[None]:
    """:func:`force_only_weights` until the block ends; then PyTorch's switches are as before."""
    before = {name: os.environ.get(name) for name in (ONLY_WEIGHTS, ANYTHING)}
    force_only_weights()
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def load_tensors(
    file: str | Path,
    map_location: str = 'cpu',
    *,
    mmap: bool = False,
    allowed: Sequence[Callable] = (),
) -> Any:
    """What ``torch.save`` wrote: tensors and plain values.

    Args:
        file: The file.
        map_location: Device of the tensors; ``'meta'`` reads none of them.
        mmap: Map the tensors to the file, which must be a zip archive, and do not read them yet.
        allowed: Classes of plain values that the file may name as well.

    Raises:
        pickle.UnpicklingError: If it names anything else.
        Exception: Whatever a damaged file makes PyTorch meet.
    """
    import torch

    with torch.serialization.safe_globals(list(allowed)):
        return torch.load(file, map_location=map_location, weights_only=True, mmap=mmap)
