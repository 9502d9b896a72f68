# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""The paper's numbers next to ours: rows to run, and the table that runs fill."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from mmaselect.fetch import find_data_set
from mmaselect.leaderboard.paper import FIGURES, PAPER_AVERAGE, ROWS, SIX, Figure, Row
from mmaselect.terminal.tables import markdown_table

NOT_RUN = 'not run yet'


def choose_rows(only: str | None) -> list[Row | Figure]:
    """Rows by the words of ``--only``.

    Args:
        only: Words with commas between them: a data set, a model, a form, the name of a row or its
            start, a figure, or a pattern with ``*``. All rows if None.

    Raises:
        ValueError: If a word fits no row.

    Example:
        >>> [row.name for row in choose_rows('flowers/sd35-medium/*, fig1')]
        ['flowers/sd35-medium/paper', 'flowers/sd35-medium/ours', 'fig1']
    """
    every: list[Row | Figure] = [*ROWS, *FIGURES]
    if only is None:
        return every
    words = [word.strip() for word in only.split(',') if word.strip()]
    chosen: set[str] = set()
    for word in words:
        fits = {
            row.name
            for row in every
            if word in row.name.split('/') or fnmatch(row.name, word) or is_start(word, row.name)
        }
        if not fits:
            parts = dict.fromkeys(part for row in every for part in row.name.split('/'))
            raise ValueError(f'--only {word!r} fits no row: there are {", ".join(parts)}')
        chosen |= fits
    return [row for row in every if row.name in chosen]


def is_start(word: str, name: str) -> bool:
    """Whether a word is the first parts of a name, such as ``'cub/sd3-medium'``."""
    return name.startswith(word.rstrip('/') + '/')


def reproduction_table(
    found: Mapping[str, Mapping[str, Any]], figures: Mapping[str, str] | None = None
) -> str:
    """All rows as Markdown.

    Args:
        found: By the stem of a config, its row of the leaderboard (``mean``, ``deviation``,
            ``runs``, ``pick``), where it has run.
        figures: By the name of a figure, what came of it.
    """
    rows = [
        {
            'row': f'`{row.name}`',
            'paper': row.paper,
            'ours': _ours(found.get(Path(row.config).stem)),
            'picked t': (found.get(Path(row.config).stem) or {}).get('pick'),
            'PFLOP': round(row.petaflops),
            'GPU hours': round(row.hours, 1),
            'download, GB': _gigabytes(row),
        }
        for row in ROWS
    ]
    rows += [_average(model, found) for model in dict.fromkeys(row.model.name for row in ROWS)]
    shown = [
        {
            'figure': f'`{figure.name}`',
            'what': figure.what,
            'tool': figure.tool,
            'paper': figure.paper or None,
            'ours': (figures or {}).get(figure.name, NOT_RUN),
        }
        for figure in FIGURES
    ]
    # The names are code, which the table escapes.
    return (markdown_table(rows) + '\n' + markdown_table(shown)).replace('\\`', '`')


def _average(model: str, found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The row of the six fine-grained sets' average, by the paper's criterion."""
    six = [row for row in ROWS if (row.model.name, row.form) == (model, 'paper')]
    six = [row for row in six if row.data.name in SIX]
    means = [(found.get(Path(row.config).stem) or {}).get('mean') for row in six]
    known = [float(mean) for mean in means if mean is not None]
    is_whole = len(known) == len(SIX)
    return {
        'row': f'average of the six, `{model}/paper`',
        'paper': PAPER_AVERAGE if model == six[0].model.name == ROWS[0].model.name else None,
        'ours': f'{sum(known) / len(known):.2f}' if is_whole else NOT_RUN,
        'PFLOP': round(sum(row.petaflops for row in six)),
        'GPU hours': round(sum(row.hours for row in six), 1),
    }


def _ours(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return NOT_RUN
    runs = int(row['runs'])
    spread = f' ± {row["deviation"]}' if row.get('deviation') else ''
    return f'{row["mean"]}{spread} ({runs} {"seed" if runs == 1 else "seeds"})'


def _gigabytes(row: Row) -> str:
    """Of the model's files and of the data set's archives."""
    size = find_data_set(row.data.name).size
    data = 'unknown' if size is None else f'{size / 1e9:.1f}'
    return f'{row.model.gigabytes} + {data}'
