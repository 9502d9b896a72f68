# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Checksums of the rows of stored tensors: what is read later is what was written.

One for each row and tensor, so that a reader of one row pays for one row.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

#: Name of the checksums among the tensors of a file.
CHECKS = 'checks'
#: Bytes of one.
CHECK_SIZE = 8

#: Checksum of bytes, from that of the bytes before them; fits into an int64.
Checksum = Callable[[Any, int], int]


class _Rows:
    """The bytes of a tensor's rows, and what they are: name, precision and shape.

    Args:
        name: Name of the tensor.
        tensor: (rows, ...), on the CPU; memory-mapped perhaps, and not read here.
    """

    def __init__(self, name: str, tensor: Tensor) -> None:
        self._about = f'{name} {tensor.dtype} {tuple(tensor.shape[1:])}'.encode()
        flat = tensor.contiguous().reshape(len(tensor), math.prod(tensor.shape[1:]))
        self._bytes: np.ndarray = flat.view(torch.uint8).numpy()

    def check(self, row: int, owner: bytes, checksum: Checksum) -> int:
        """Checksum of a row, with what it is and what it belongs to."""
        return checksum(self._bytes[row].data, checksum(owner + self._about, 0))


def row_checks(
    tensors: Mapping[str, Tensor], owners: Sequence[bytes], checksum: Checksum = zlib.crc32
) -> Tensor:
    """Checksums of all rows: (rows, tensors), int64, tensors in the order of their names.

    Args:
        tensors: (rows, ...) each, on the CPU.
        owners: What each row belongs to: the key of an image, say. A row at another place fails.
        checksum: Which one; CRC-32 by default.
    """
    columns = [_Rows(name, tensors[name]) for name in sorted(tensors)]
    found = [
        [rows.check(row, owner, checksum) for rows in columns] for row, owner in enumerate(owners)
    ]
    return torch.tensor(found, dtype=torch.int64).view(len(owners), len(columns))


class RowReader:
    """The rows of one file, each checked when it is first asked for.

    Args:
        tensors: (rows, ...) each, mapped to the file perhaps.
        checks: What :func:`row_checks` gave when they were written.
        checksum: The one that it gave.

    Raises:
        ValueError: If the checksums are not those of so many rows and tensors.
    """

    def __init__(
        self, tensors: Mapping[str, Tensor], checks: Tensor, checksum: Checksum = zlib.crc32
    ) -> None:
        rows = {len(tensor) for tensor in tensors.values()}
        if checks.dtype != torch.int64 or tuple(checks.shape) != (len(checks), len(tensors)):
            raise ValueError(f'its checksums are {tuple(checks.shape)}, {checks.dtype}')
        if rows != {len(checks)}:
            raise ValueError(f'it has {len(checks)} checksums for {sorted(rows)} rows')
        self._checksum = checksum
        #: By name: rows, their checksums, and which rows were looked at.
        self._columns = {
            name: (_Rows(name, tensors[name]), checks[:, column].tolist(), bytearray(len(checks)))
            for column, name in enumerate(sorted(tensors))
        }

    def is_whole(self, row: int, owner: bytes, names: Iterable[str] | None = None) -> bool:
        """Whether a row is what was written."""
        for name in self._columns if names is None else names:
            rows, checks, seen = self._columns[name]
            if seen[row]:
                continue
            if rows.check(row, owner, self._checksum) != checks[row]:
                return False
            seen[row] = True
        return True
