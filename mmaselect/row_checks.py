# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Checksums of the rows of stored tensors: what is read later is what was written.

One for each row and tensor, so that a reader of one row pays for one row.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

#: Name of the checksums among the tensors of a file.
CHECKS = 'checks'
#: Bytes of one.
CHECK_SIZE = 8


def row_check(name: str, row: Tensor, owner: bytes) -> int:
    """CRC-32 of a row, with its name, precision, shape and owner.

    Args:
        name: Name of the tensor.
        row: One entry of it, on the CPU.
        owner: What the row belongs to: the key of an image, say. A row at another place fails.
    """
    start = zlib.crc32(owner + f'{name} {row.dtype} {tuple(row.shape)}'.encode())
    return zlib.crc32(row.contiguous().reshape(-1).view(torch.uint8).numpy().data, start)


def row_checks(tensors: Mapping[str, Tensor], owners: Sequence[bytes]) -> Tensor:
    """Checksums of all rows: (rows, tensors), int64, tensors in the order of their names.

    Args:
        tensors: (rows, ...) each, on the CPU.
        owners: What each row belongs to.
    """
    names = sorted(tensors)
    found = [
        [row_check(name, tensors[name][row], owner) for name in names]
        for row, owner in enumerate(owners)
    ]
    return torch.tensor(found, dtype=torch.int64).view(len(owners), len(names))


class RowReader:
    """The rows of one file, each checked when it is first asked for.

    Args:
        tensors: (rows, ...) each, mapped to the file perhaps.
        checks: What :func:`row_checks` gave when they were written.

    Raises:
        ValueError: If the checksums are not those of so many rows and tensors.
    """

    def __init__(self, tensors: Mapping[str, Tensor], checks: Tensor) -> None:
        self.tensors = tensors
        self._columns = {name: column for column, name in enumerate(sorted(tensors))}
        rows = {len(tensor) for tensor in tensors.values()}
        if checks.dtype != torch.int64 or tuple(checks.shape) != (len(checks), len(tensors)):
            raise ValueError(f'its checksums are {tuple(checks.shape)}, {checks.dtype}')
        if rows != {len(checks)}:
            raise ValueError(f'it has {len(checks)} checksums for {sorted(rows)} rows')
        self._checks = checks
        self._seen = torch.zeros(checks.shape, dtype=torch.bool)

    def is_whole(self, row: int, owner: bytes, names: Iterable[str] | None = None) -> bool:
        """Whether a row is what was written."""
        for name in self._columns if names is None else names:
            column = self._columns[name]
            if self._seen[row, column]:
                continue
            if row_check(name, self.tensors[name][row], owner) != int(self._checks[row, column]):
                return False
            self._seen[row, column] = True
        return True
