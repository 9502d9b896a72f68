# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""A progress bar for what takes minutes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

_hidden = False


def hide_progress(hidden: bool = True) -> None:
    """Have no progress bars in this process, or have them again."""
    global _hidden
    _hidden = hidden


@contextmanager
def progress_bar(unit: str, disable: bool = False) -> Iterator[Progress]:
    """A progress bar on stderr.

    Args:
        unit: Unit of the count.
        disable: Draw nothing.
    """
    with Progress(
        TextColumn('{task.description}'),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=disable or _hidden,
    ) as bar:
        yield bar
