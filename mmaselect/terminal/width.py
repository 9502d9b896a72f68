# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""How wide what is printed may be: one rule for tables, boxes and help."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap

from rich.console import Console

#: Where nothing is broken: a pipe or a file has no edge.
UNBOUNDED = 10_000


def terminal_width() -> int:
    """Columns of the terminal, or of ``COLUMNS``; no bound where stdout is a pipe or a file."""
    if os.environ.get('COLUMNS', '').isdecimal() or sys.stdout.isatty():
        return shutil.get_terminal_size().columns
    return UNBOUNDED


def wrapped(text: str) -> str:
    """A paragraph of help, broken where argparse breaks the help of flags."""
    width = shutil.get_terminal_size().columns - 2
    return textwrap.fill(text, width, break_on_hyphens=False)


def console() -> Console:
    """A console of that width on stdout."""
    return Console(width=terminal_width())
