# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Tables as CSV and as Markdown."""

from __future__ import annotations

import csv
import io
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmaselect.files import write_atomically
from mmaselect.terminal.width import terminal_width

#: What Markdown or HTML would read as markup. Underscores within a word do not count.
_MARKUP = re.compile(r'[\\`*\[\]<>|~&#]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])')


def write_csv(path: str | Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write rows as CSV; columns are all keys, in the order in which they first occur.

    Texts that a spreadsheet would take for a formula get an apostrophe before them.
    """
    columns = list(dict.fromkeys(key for row in rows for key in row))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, restval='', lineterminator='\n')
    writer.writeheader()
    writer.writerows({key: _no_formula(cell) for key, cell in row.items()} for row in rows)
    return write_atomically(path, buffer.getvalue())


def print_columns(rows: Sequence[Sequence[str]]) -> None:
    """Print rows of text in columns, each as wide as its widest cell: for a screen or a pipe.

    On a terminal, a row that is too wide is broken in its last column.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)][:-1]
    indent = sum(widths) + 2 * len(widths)
    for *cells, last in rows:
        start = ''.join(f'{cell.ljust(width)}  ' for cell, width in zip(cells, widths, strict=True))
        room = terminal_width() - indent
        lines = textwrap.wrap(last, room) if room >= 20 else [last]
        print(start + f'\n{" " * indent}'.join(lines or ['']))


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as a Markdown table: numbers to the right, what is None as a dash.

    Example:
        >>> print(markdown_table([{'name': 'a', 'value': 1.5}]), end='')
        | name | value |
        |---|---:|
        | a | 1.5 |
    """
    columns = list(dict.fromkeys(key for row in rows for key in row))
    numeric = {
        column: all(isinstance(row.get(column), (int, float, type(None))) for row in rows)
        for column in columns
    }
    lines = [
        '| ' + ' | '.join(columns) + ' |',
        '|' + '|'.join('---:' if numeric[column] else '---' for column in columns) + '|',
    ]
    for row in rows:
        cells = ['-' if row.get(column) is None else _as_text(row[column]) for column in columns]
        lines.append('| ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines) + '\n'


def _as_text(cell: Any) -> str:
    """A cell of a Markdown table that shows what it says: no markup, no HTML, one line."""
    if not isinstance(cell, str):
        return str(cell)
    return _MARKUP.sub(r'\\\g<0>', ' '.join(cell.split()))


def _no_formula(cell: Any) -> Any:
    """A cell of a CSV file that no spreadsheet computes."""
    if not isinstance(cell, str) or not cell.startswith(('=', '+', '-', '@', '\t', '\r')):
        return cell
    try:
        float(cell)
    except ValueError:
        return f"'{cell}"
    return cell
