# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""The one place where pickled files are read: tensors and plain values, never code.

Safetensors and JSON hold no code and need no guard. Files that ``torch.save`` wrote do, whichever
code reads them: our code through :func:`load_tensors`, and libraries (MMEngine, accelerate) within
:func:`only_weights`. Plain pickles, as some data sets have them, go through :func:`load_plain`. A
test walks the sources and refuses any other way.

Knows no torch before a file is read, so that ``--help`` is there at once.
"""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import IO, Any

#: Switches of PyTorch's own, which every ``torch.load`` of a process obeys.
ONLY_WEIGHTS = 'TORCH_FORCE_WEIGHTS_ONLY_LOAD'
ANYTHING = 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'

#: What a plain pickle may name, by module: types that hold values, and run nothing of a file.
_PLAIN = {
    'builtins': (
        *('bool', 'bytearray', 'bytes', 'complex', 'dict', 'float', 'frozenset', 'int', 'list'),
        *('range', 'set', 'slice', 'str', 'tuple'),
    ),
    'collections': ('Counter', 'OrderedDict', 'defaultdict', 'deque'),
    'datetime': ('date', 'datetime', 'time', 'timedelta', 'timezone'),
    'pathlib': ('PosixPath', 'PurePosixPath', 'PureWindowsPath'),
    'numpy': ('dtype', 'ndarray'),
    'numpy.core.multiarray': ('_reconstruct', 'scalar'),
    'numpy.core.numeric': ('_frombuffer',),
}


def only_weights_are_read() -> bool:
    """Whether this process reads tensors and plain values alone."""
    return os.environ.get(ONLY_WEIGHTS) == '1'


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


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        # Python 2 and NumPy 2 name modules differently.
        known = module.replace('__builtin__', 'builtins').replace('numpy._core', 'numpy.core')
        if (known, name) == ('_codecs', 'encode'):
            return _as_bytes
        if name not in _PLAIN.get(known, ()):
            raise UnpicklingError(
                f'a pickled file holds {module}.{name} in place of plain values (numbers, texts, '
                f'lists, dicts, NumPy arrays): reading it could run code. Save its content as '
                f'JSON, or as such values'
            )
        return super().find_class(module, name)


def _as_bytes(text: str, encoding: str) -> bytes:
    """What stands for bytes in old protocols; no other codec is looked up."""
    if encoding != 'latin1':
        raise UnpicklingError(f'a pickled file holds bytes that are encoded as {encoding!r}')
    return text.encode(encoding)


def load_plain(file: IO[bytes], **kwargs: Any) -> Any:
    """What ``pickle.dump`` wrote: plain values and NumPy arrays.

    Args:
        file: The file, open for reading.
        kwargs: Of :class:`pickle.Unpickler`, such as ``encoding``.

    Raises:
        pickle.UnpicklingError: If it names anything else.
        Exception: Whatever a damaged file makes pickle meet.
    """
    return _PlainUnpickler(file, **kwargs).load()
