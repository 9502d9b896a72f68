# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Files that are there in full or not at all, however the process that writes them ends."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def written_aside(path: str | Path) -> Iterator[Path]:
    """A path beside ``path`` to write to; on leaving without an error it takes that place.

    Readers see the old file or the whole new one. Processes that write the same file do not
    disturb each other: each has a path of its own, and the last one to finish stays.

    Args:
        path: File that is to be written; its folder is made if there is none.

    Yields:
        Path in the same folder, with the same suffix (libraries choose a format by it). The
        file gets the permissions that the user's umask gives, whatever made it: colleagues who
        share the folder could not read one of :mod:`tempfile`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f'.{path.stem}.{uuid.uuid4().hex}{path.suffix}')
    try:
        aside.touch()
        mode = aside.stat().st_mode
        aside.unlink()
        yield aside
        aside.chmod(mode)  # safetensors gives its files 0600
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def write_atomically(path: str | Path, text: str) -> Path:
    """Write a text file in UTF-8, in full or not at all."""
    with written_aside(path) as aside:
        aside.write_text(text, encoding='utf-8')
    return Path(path)


def write_json(path: str | Path, data: Any) -> Path:
    """Write JSON, in full or not at all."""
    return write_atomically(path, json.dumps(data, indent=2) + '\n')
