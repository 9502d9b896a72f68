# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Tensors on disk by key: written by several processes at once, read memory-mapped by all of them.

A store is a folder of safetensors shards. Each shard holds ``keys`` (entries, 16), for every name
one tensor (entries, ...), and a checksum of each row. There is no index that could disagree with
them: the keys of all shards are read when the store is opened, and those of new shards when a key
is not found. A row is checked when it is first read; a shard that fails is
written anew.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mmaselect.files import check_regular, clear_leftovers, write_json, written_aside
from mmaselect.logs import logger
from mmaselect.row_checks import CHECKS, RowReader, row_checks

try:
    import xxhash
except ImportError as error:
    # No reason for a backbone without a cache not to be built.
    _MISSING: ImportError | None = error
else:
    _MISSING = None

#: Bytes of a key.
KEY_SIZE = 16
#: Name of the keys among a shard's tensors.
KEYS = 'keys'
#: What a store holds, in words.
ABOUT = 'about.json'
_PREFIX, _SUFFIX = 'shard-', '.safetensors'
#: A folder's time of change is not finer than this everywhere.
_UNSURE_NS = 2_000_000_000

#: The tensors of a shard, or of a batch that is not written yet, and a row of them.
Entry = tuple[Mapping[str, Tensor], int]


def need_xxhash() -> None:
    """Say what to install if XXH3 is not there.

    Raises:
        ImportError: If so.
    """
    if _MISSING is not None:
        raise ImportError(
            'cache=... of the backbone knows images and checks files by XXH3, and the package '
            f'xxhash is not installed: pip install xxhash ({_MISSING})'
        ) from _MISSING


def key_of(data: Any) -> bytes:
    """XXH3 of bytes: a key."""
    return xxhash.xxh3_128_digest(data)


def checksum(data: Any, start: int = 0) -> int:
    """XXH3 of bytes, as an int64: a fifteenth of the time of CRC-32, for reading from a cache."""
    value = xxhash.xxh3_64_intdigest(data, start % 2**64)
    return value - 2**64 if value >= 2**63 else value


def folder_bytes(folder: str | Path) -> int:
    """Bytes of all files below a folder; 0 if there is none."""
    total = 0
    for path in Path(folder).rglob('*'):
        with contextlib.suppress(FileNotFoundError):  # another process removed it
            total += path.stat().st_size if path.is_file() else 0
    return total


class TensorStore:
    """Entries of named tensors, of equal shapes, by a key of 16 bytes.

    A shard is there in full or not at all, so a process that is killed loses what it had not
    written yet, and nothing is read that is not what was written. Entries that two processes have
    computed are kept once or twice, and are the same.

    Args:
        folder: Where the shards are.
        about: What the entries are; written next to them.
        root: Folder whose size ``max_bytes`` bounds, of this store and others.
        max_bytes: Bound of it: what would exceed it is not stored, and a warning says so.
        shard_bytes: Entries are written when there are so many bytes of them.

    Raises:
        ValueError: If the folder holds something else.
    """

    def __init__(
        self,
        folder: str | Path,
        about: Mapping[str, Any],
        root: str | Path,
        max_bytes: float,
        shard_bytes: int = 64 << 20,
    ) -> None:
        self.folder, self.root = Path(folder), Path(root)
        self.max_bytes, self.shard_bytes = max_bytes, shard_bytes
        self._found: dict[bytes, Entry] = {}
        self._readers: dict[int, tuple[Path, RowReader]] = {}
        self._pending: dict[bytes, Entry] = {}
        self._pending_bytes = 0
        self._shards: set[str] = set()
        self._damaged: list[Path] = []
        self._changed: int | None = None
        self._is_open_to_more = True
        self._owner = os.getpid()
        self._begin(dict(about))
        self.refresh()

    def _begin(self, about: dict[str, Any]) -> None:
        path = self.folder / ABOUT
        try:
            if not path.exists():
                write_json(path, about)
            clear_leftovers(self.folder)
            found = json.loads(check_regular(path).read_text(encoding='utf-8'))
        except OSError as error:
            self._close(f'{self.folder} cannot be used ({error})')
            return
        except ValueError as error:
            raise ValueError(f'{path} cannot be read ({error}): remove {self.folder}') from error
        if found != json.loads(json.dumps(about)):
            raise ValueError(
                f'{path} tells of other entries than these: it was edited. Remove {self.folder}'
            )

    def __len__(self) -> int:
        return len(self._found)

    def _close(self, why: str) -> None:
        """Store nothing more, and say so."""
        if self._is_open_to_more:
            logger.warning(
                f'cache: {why}. What the frozen part gives is computed again where it is not '
                f'stored already',
            )
        self._is_open_to_more = False
        for key in self._pending:
            self._found.pop(key, None)
        self._pending, self._pending_bytes = {}, 0

    # -- reading ----------------------------------------------------------------------------------
    def refresh(self) -> None:
        """Look for shards that this or another process has added."""
        try:
            changed = os.stat(self.folder).st_mtime_ns
            if changed == self._changed:
                return
            names = sorted(entry.name for entry in os.scandir(self.folder))
        except OSError:
            return
        # A second change may follow that leaves the time what it is.
        self._changed = changed if time.time_ns() - changed > _UNSURE_NS else None
        for name in names:
            if name.startswith(_PREFIX) and name.endswith(_SUFFIX) and name not in self._shards:
                self._shards.add(name)
                self._open(self.folder / name)

    def _open(self, path: Path) -> None:
        try:
            with safe_open(check_regular(path), framework='pt') as shard:
                # Memory-mapped: nothing but the keys is read here.
                tensors = {name: shard.get_tensor(name) for name in shard.keys()}  # noqa: SIM118
            keys, checks = tensors.pop(KEYS), tensors.pop(CHECKS)
            if keys.dtype != torch.uint8 or keys.shape[1:] != (KEY_SIZE,):
                raise ValueError(f'its keys are {tuple(keys.shape)}, {keys.dtype}')
            if not tensors or any(len(tensor) != len(keys) for tensor in tensors.values()):
                raise ValueError('its tensors are not those of its keys')
            self._readers[id(tensors)] = path, RowReader(tensors, checks, checksum)
        except OSError as error:
            logger.warning(
                f'cache: {path} cannot be read ({error}); its images are computed again',
            )
            return
        except (SafetensorError, ValueError, KeyError) as error:
            self._drop(path, f'{error!r}')
            return
        text = keys.numpy().tobytes()
        for row in range(len(keys)):
            key = text[row * KEY_SIZE : (row + 1) * KEY_SIZE]
            self._found[key] = (tensors, row)
            self._pending.pop(key, None)

    def _drop(self, path: Path, why: str) -> None:
        """Use nothing of a shard that is not what was written; the next one takes its place."""
        logger.warning(
            f'cache: {path} is damaged ({why}): its images are computed again, and written in its '
            f'place',
        )
        self._damaged.append(path)

    def _checked(self, key: bytes) -> Entry | None:
        """The entry of a key, None if there is none that is what was written."""
        entry = self._found.get(key)
        if entry is None:
            return None
        tensors, row = entry
        path, reader = self._readers.get(id(tensors), (None, None))
        if path is None or reader is None or reader.is_whole(row, key):
            return entry
        for other in [k for k, (found, _) in self._found.items() if found is tensors]:
            del self._found[other]
        del self._readers[id(tensors)]
        self._drop(path, f'the values of entry {row} are not those that were written')
        return None

    def find(self, keys: Sequence[bytes]) -> list[Entry | None]:
        """The entries of some keys, None for each that is not there, or was damaged."""
        entries = [self._checked(key) for key in keys]
        if any(entry is None for entry in entries):
            self.refresh()
            entries = [self._checked(key) for key in keys]
        elif self._pending and any(key in self._pending for key in keys):
            # All is there, and part of it is this process's own: a second pass over the images
            # has begun. Others wait for the rest of the first.
            self.flush()
            entries = [self._checked(key) for key in keys]
        return entries

    # -- writing ----------------------------------------------------------------------------------
    def add(self, keys: Sequence[bytes], tensors: Mapping[str, Tensor]) -> None:
        """Add entries; they are found at once, and written with others.

        Args:
            keys: Their keys.
            tensors: (len(keys), ...) each, on the CPU; not to be changed afterwards.
        """
        if not self._is_open_to_more:
            return
        size = sum(tensor[0].nbytes for tensor in tensors.values()) + KEY_SIZE
        for row, key in enumerate(keys):
            if key not in self._found:
                self._found[key] = self._pending[key] = (tensors, row)
                self._pending_bytes += size
        if self._pending_bytes >= self.shard_bytes:
            self.flush()

    def flush(self) -> None:
        """Write what is not written yet."""
        if not self._pending or os.getpid() != self._owner:
            return
        self.refresh()  # another process may have written some of it
        if not self._pending:
            return
        entries = list(self._pending.items())
        names = sorted(entries[0][1][0])
        shard = {name: torch.stack([e[name][row] for _, (e, row) in entries]) for name in names}
        text = bytearray(b''.join(key for key, _ in entries))
        shard[CHECKS] = row_checks(shard, [key for key, _ in entries], checksum)
        shard[KEYS] = torch.frombuffer(text, dtype=torch.uint8).view(-1, KEY_SIZE)
        size = sum(tensor.nbytes for tensor in shard.values())
        there = folder_bytes(self.root)
        if there + size > self.max_bytes:
            self._close(
                f'{self.root} holds {there / 1e9:.1f} GB, and max_gb={self.max_bytes / 1e9:g} '
                f'allows no more. Raise max_gb, remove folders of other runs in it, or take a '
                f'smaller dtype'
            )
            return
        path = self.folder / f'{_PREFIX}{uuid.uuid4().hex}{_SUFFIX}'
        if self._damaged:
            path = self._damaged.pop()
            self._shards.discard(path.name)
        try:
            with written_aside(path) as aside:
                save_file(shard, aside)
                with aside.open('rb+') as file:
                    os.fsync(file.fileno())
        except (OSError, SafetensorError) as error:
            self._close(f'{path} cannot be written ({error})')
            return
        self._pending_bytes = 0
        self._changed = None
        self.refresh()  # puts the memory-mapped entries in the place of those in memory
        if self._pending:
            self._close(f'{path} was written, and cannot be read')
