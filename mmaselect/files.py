# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Files that are there in full or not at all, however the process that writes them ends."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

#: Leftovers of processes that cannot be looked up (of other machines) are cleared after this time.
_LEFTOVER_SECONDS = 24 * 3600
#: ``.NAME.MACHINE-PROCESS-RANDOM.SUFFIX``, as :func:`written_aside` names what it writes.
_ASIDE = re.compile(
    r'\..+\.(?:(?P<machine>[0-9a-f]{8})-(?P<pid>\d+)-[0-9a-f]{8}|[0-9a-f]{32})(\.[^.]*)?'
)


def cache_root() -> Path:
    """``$MMASELECT_CACHE``, or ``~/.cache/mmaselect``."""
    return Path(os.environ.get('MMASELECT_CACHE') or Path.home() / '.cache' / 'mmaselect')


@contextmanager
def written_aside(path: str | Path) -> Iterator[Path]:
    """A path beside ``path`` to write to; on leaving without an error it takes that place.

    Readers see the old file or the whole new one. Processes that write the same file do not
    disturb each other: each has a path of its own, and the last one to finish stays. What a killed
    process left is cleared by the next one that writes into the folder.

    Args:
        path: File that is to be written; its folder is made if there is none.

    Yields:
        Path in the same folder, with the same suffix (libraries choose a format by it). The
        file gets the permissions that the user's umask gives, whatever made it: colleagues who
        share the folder could not read one of :mod:`tempfile`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    clear_leftovers(path.parent)
    writer = f'{_machine()}-{os.getpid()}-{uuid.uuid4().hex[:8]}'
    aside = path.with_name(f'.{path.stem[:100]}.{writer}{path.suffix}')
    try:
        aside.touch()
        mode = aside.stat().st_mode
        aside.unlink()
        yield aside
        aside.chmod(mode)  # safetensors gives its files 0600
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def clear_leftovers(folder: str | Path) -> None:
    """Remove what processes that were killed while they wrote into a folder have left there.

    A file is a leftover if the process that its name tells has ended. Of files that were written
    on another machine (or in another container) nothing is known: those go after a day.
    """
    for entry in os.scandir(folder):
        match = _ASIDE.fullmatch(entry.name)
        if match is None:
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
