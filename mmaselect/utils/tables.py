# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Tables as CSV and as Markdown."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmaselect.files import write_atomically


def write_csv(path: str | Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write rows as CSV; columns are all keys, in the order in which they first occur."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, restval='', lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows)
    return write_atomically(path, buffer.getvalue())


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
        cells = ['-' if row.get(column) is None else str(row[column]) for column in columns]
        lines.append('| ' + ' | '.join(cell.replace('|', '\\|') for cell in cells) + ' |')
    return '\n'.join(lines) + '\n'
