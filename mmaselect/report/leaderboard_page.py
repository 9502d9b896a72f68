# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""``leaderboard.html``: a table that can be sorted."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmaselect.files import write_atomically
from mmaselect.report.rendering import render


def leaderboard_page(
    rows: Sequence[Mapping[str, Any]], same: Mapping[str, Any] | None = None
) -> str:
    """A page with the rows of a leaderboard.

    Args:
        rows: As :func:`mmaselect.leaderboard.table.group_runs` gives them.
        same: What is the same in all rows, and no column of them.

    Returns:
        str: HTML that needs no other file and no network.
    """
    columns = list(dict.fromkeys(key for row in rows for key in row))
    numeric = [
        column
        for column in columns
        if all(isinstance(row.get(column), int | float | None) for row in rows)
    ]
    leading: dict[tuple[Any, Any], int] = {}
    for place, row in enumerate(rows):
        group = (row.get('data set'), row.get('metric'))
        if group not in leading or row['mean'] > rows[leading[group]]['mean']:
            leading[group] = place
    return render(
        'leaderboard.html.j2',
        columns=columns,
        numeric=numeric,
        rows=rows,
        best=set(leading.values()),
        same=same or {},
    )


def save_leaderboard_page(
    rows: Sequence[Mapping[str, Any]], path: str | Path, same: Mapping[str, Any] | None = None
) -> Path:
    """Write :func:`leaderboard_page` to a file, and return its path.

    Pages of runs are linked by their paths from the file's folder.
    """
    folder = Path(path).resolve().parent

    def linked(row: Mapping[str, Any]) -> dict[str, Any]:
        pages = str(row.get('page') or '').split(', ')
        found = [os.path.relpath(Path(page).resolve(), folder) for page in pages if page]
        return {**row, 'page': ', '.join(found)} if found else dict(row)

    return write_atomically(path, leaderboard_page([linked(row) for row in rows], same))
