# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Files that are there in full or not at all, however the process that writes them ends."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import socket
import stat
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

logger = logging.getLogger(__name__)

#: Leftovers of processes that cannot be looked up (of other machines) are cleared after this time.
_LEFTOVER_SECONDS = 24 * 3600
#: ``.mmaselect-NAME.MACHINE-PROCESS-RANDOM.SUFFIX``, as :func:`written_aside` names what it writes.
_PREFIX = '.mmaselect-'
_ASIDE = re.compile(
    re.escape(_PREFIX)
    + r'(?P<stem>.+)\.(?P<machine>[0-9a-f]{8})-(?P<pid>\d+)-[0-9a-f]{8}(?P<suffix>\.[^.]*)?'
)


def cache_root() -> Path:
    """``$MMASELECT_CACHE``, else ``mmaselect`` in ``$XDG_CACHE_HOME`` or in ``~/.cache``.

    Raises:
        OSError: If none of them can be found: without a home directory, say.
    """
    try:
        if own := os.environ.get('MMASELECT_CACHE'):
            return Path(own).expanduser()
        # The standard asks to ignore relative paths.
        shared = Path(os.environ.get('XDG_CACHE_HOME') or '.').expanduser()
        return (shared if shared.is_absolute() else Path.home() / '.cache') / 'mmaselect'
    except RuntimeError as error:  # no HOME, and a user whom the system does not know
        raise OSError(
            f'there is no home directory to keep a cache in ({error}): set MMASELECT_CACHE to a '
            f'folder that can be written'
        ) from error


def check_regular(path: str | Path) -> Path:
    """A path that can be opened without waiting: neither a pipe nor a device.

    Raises:
        FileNotFoundError: If nothing is there.
        OSError: If it is not a regular file, nor a link to one.
    """
    path = Path(path)
    if not stat.S_ISREG(path.stat().st_mode):
        kind = 'a folder' if path.is_dir() else 'a pipe, a socket or a device'
        raise OSError(f'{str(path)!r} is {kind}, and no regular file')
    return path


def acquired(file: Path, busy: str) -> FileLock:
    """A lock that one process of this machine, or of this shared folder, has at a time.

    Args:
        file: The file of the lock; its folder is made if there is none.
        busy: What another process does while it has the lock, for the log.

    Returns:
        The lock, to be released by the caller.

    Raises:
        OSError: If the file cannot be written.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(str(file))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.info('process %d waits: another one %s', os.getpid(), busy)
        lock.acquire()
    return lock


@contextmanager
def written_aside(path: str | Path) -> Iterator[Path]:
    """A path next to ``path`` to write to; on leaving without an error it takes that place.

    Readers see the old file or the whole new one. Processes that write the same file do not
    disturb each other: each has a path of its own, and the last one to finish stays. What a killed
    process left is cleared by the next one that writes the same file.

    Args:
        path: File that is to be written; its folder is made if there is none. ``~`` is the home
            directory. A link stays, and what it leads to is written. A pipe or a character device
            gets the bytes at the end.

    Yields:
        Path in the same folder, with the same suffix (libraries choose a format by it). The
        file gets the permissions that the user's umask gives, whatever made it: colleagues who
        share the folder could not read one of :mod:`tempfile`.

    Raises:
        OSError: If the path is a folder, a socket or a disk, or cannot be written.
    """
    path = Path(path).expanduser()
    if path.exists() and not path.is_file():
        with _written_through(path) as aside:
            yield aside
        return
    if path.is_symlink():
        path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    stem = path.stem[:100]
    _clear(path.parent, stem)
    writer = f'{_machine()}-{os.getpid()}-{uuid.uuid4().hex[:8]}'
    aside = path.with_name(f'{_PREFIX}{stem}.{writer}{path.suffix}')
    try:
        aside.touch()
        mode = aside.stat().st_mode
        aside.unlink()
        yield aside
        aside.chmod(mode)  # safetensors gives its files 0600
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def _written_through(path: Path) -> Iterator[Path]:
    """A path elsewhere to write to; at the end its bytes go into a pipe or a device."""
    mode = path.stat().st_mode
    if not (stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)):
        kind = 'a folder' if stat.S_ISDIR(mode) else 'a socket or a disk'
        raise OSError(
            f'{str(path)!r} is {kind}, and cannot be written as a file: give another path'
        )
    try:
        # A pipe that nobody reads is an error at once, and no wait without end.
        target = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    except OSError as error:
        raise OSError(f'{str(path)!r} cannot be written ({error}): give another path') from error
    os.set_blocking(target, True)
    with os.fdopen(target, 'wb') as stream, tempfile.TemporaryDirectory() as folder:
        aside = Path(folder) / path.name
        yield aside
        with aside.open('rb') as source:
            shutil.copyfileobj(source, stream)


def clear_leftovers(folder: str | Path) -> None:
    """Remove what processes that were killed while they wrote into a folder have left there.

    For folders that belong to the package. A file is a leftover if the process that its name tells
    has ended. Of files that were written on another machine (or in another container) nothing is
    known: those go after a day.
    """
    _clear(folder, None)


def _clear(folder: str | Path, stem: str | None) -> None:
    """Remove leftovers of one file, or of all."""
    for entry in os.scandir(folder):
        match = _ASIDE.fullmatch(entry.name)
        if match is None or stem not in (None, match['stem']):
            continue
        with contextlib.suppress(OSError):  # another process may clear it, too
            if match['machine'] == _machine():
                ended = not _is_running(int(match['pid']))
            else:
                ended = time.time() - entry.stat().st_mtime > _LEFTOVER_SECONDS
            if ended:
                os.unlink(entry.path)


@cache
def _machine() -> str:
    """Tells process numbers of this machine, or container, from those of others."""
    namespace = ''
    with contextlib.suppress(OSError):
        namespace = os.readlink('/proc/self/ns/pid')
    return hashlib.sha256(f'{socket.gethostname()} {namespace}'.encode()).hexdigest()[:8]


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # somebody else's
    return True


def write_atomically(path: str | Path, text: str) -> Path:
    """Write a text file in UTF-8, in full or not at all."""
    with written_aside(path) as aside:
        aside.write_text(text, encoding='utf-8')
    return Path(path)


def write_json(path: str | Path, data: Any) -> Path:
    """Write JSON, in full or not at all."""
    return write_atomically(path, json.dumps(data, indent=2) + '\n')
