# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""From evaluated runs to one table: what belongs together, and the paper's numbers next to it."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmaselect.leaderboard.paper import DATA, MODELS, PAPER_AVERAGE, SIX, SOURCE
from mmaselect.leaderboard.significance import difference

#: Toolbox to the metric that a table shows.
PRIMARY_METRICS = {'mmpretrain': 'accuracy/top1', 'mmseg': 'mIoU', 'mmdet': 'coco/bbox_mAP'}
#: Top-1 accuracies that the paper states, by dataset class.
PAPER_ACCURACIES = {data.dataset: data.paper for data in DATA if data.paper is not None}
#: Its six fine-grained datasets.
PAPER_SIX = tuple(data.dataset for data in DATA if data.name in SIX)
#: The paper's numbers are of these.
PAPER_MODELS = tuple(model.pretrained for model in MODELS)
PAPER_HEAD = 'AttentionPoolClsHead'
#: Columns that are shown although all rows say the same.
ALWAYS_SHOWN = ('data set', 'model', 'pick', 'metric', 'mean')


def group_runs(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row for each setting: mean and deviation over its runs.

    Args:
        results: Results of single runs, as ``tools/leaderboard.py`` collects them; ``setting,
            dataset,
            model, head, block, feature, timestep, metric, value, trained, total`` are in all.

    Returns:
        Rows in the order of datasets; the best first within one. ``to the best`` is the difference
        to the first row of the same data set and metric, where both have several seeds.
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for result in results:
        groups.setdefault(result['setting'], []).append(result)
    rows = []
    values_of: dict[int, dict[int | None, float]] = {}
    for runs in groups.values():
        first = runs[0]
        values = [run['value'] for run in runs]
        # The others are in percent.
        digits = 4 if first['metric'] == PRIMARY_METRICS['mmdet'] else 2
        known = is_papers(first['model'], first['head'])
        paper = PAPER_ACCURACIES.get(first['dataset']) if known else None
        row = {
            'data set': first['dataset'],
            'model': first['model'],
            'head': first['head'],
            'criterion': first.get('criterion'),
            'block': _one_or_all((run['block'] for run in runs), ' or '),
            'feature': _one_or_all((run['feature'] for run in runs), ' or '),
            'pick': _one_or_all(run.get('pick') or run['timestep'] for run in runs),
            'metric': first['metric'],
            'mean': round(statistics.mean(values), digits),
            'deviation': round(statistics.stdev(values), digits) if len(values) > 1 else None,
            'to the best': None,
            'runs': len(values),
            'seeds': _one_or_all(run.get('seed') for run in runs),
            'paper': paper if first['metric'] == PRIMARY_METRICS['mmpretrain'] else None,
            'source': SOURCE if paper is not None else None,
            'schedule': first.get('schedule'),
            'image size': first.get('image_size'),
            'GFLOPs per image': first.get('gflops'),
            's per image': _mean((run.get('seconds_per_image') for run in runs), 4),
            'trained (M)': round(first['trained'] / 1e6, 3),
            'total (M)': round(first['total'] / 1e6, 3),
            'selection (s)': _mean(run['selection_seconds'] for run in runs),
            'selection (evaluations)': _mean(run['selection_evaluations'] for run in runs),
            'training GPU (MB)': _largest(run['train_memory'] for run in runs),
            'testing (MB)': _largest(run['test_memory'] for run in runs),
            'config': _one_or_all(run.get('config') for run in runs),
            'page': _one_or_all(run.get('page') for run in runs),
        }
        values_of[id(row)] = {
            run.get('seed') if run.get('seed') is not None else -1 - place: run['value']
            for place, run in enumerate(runs)
        }
        rows.append(row)
    rows.sort(key=lambda row: (row['data set'], row['metric'], -row['mean']))
    leaders: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        leader = leaders.setdefault((row['data set'], row['metric']), row)
        if leader is not row:
            found = difference(values_of[id(row)], values_of[id(leader)])
            row['to the best'] = None if found is None else str(found)
    return rows + fine_grained_averages(rows)


def failed_rows(failures: Mapping[str, str]) -> list[dict[str, Any]]:
    """A row for each run that has no result.

    Args:
        failures: Name of the run to what is wrong with it.
    """
    return [
        {'data set': Path(name).name, 'problem': shorten_line(failure)}
        for name, failure in failures.items()
    ]


def shorten_line(text: str, limit: int = 200) -> str:
    """The end of a text, in one line: errors end with their reason."""
    line = ' '.join(text.split())
    return line if len(line) <= limit else f'...{line[-limit:]}'


def is_papers(model: str, head: str) -> bool:
    """Whether the paper's numbers are of this frozen model and this head."""
    return model in PAPER_MODELS and head == PAPER_HEAD


def fine_grained_averages(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for each model, head and criterion that has the paper's six fine-grained datasets."""
    best: dict[tuple[str, str, str | None], dict[str, float]] = {}
    for row in rows:
        if row['data set'] in PAPER_SIX and row['metric'] == PRIMARY_METRICS['mmpretrain']:
            found = best.setdefault((row['model'], row['head'], row.get('criterion')), {})
            # Rows come best first: blocks and features may differ among datasets.
            found.setdefault(row['data set'], row['mean'])
    return [
        {
            'data set': 'average of the six fine-grained',
            'model': model,
            'head': head,
            'criterion': criterion,
            'metric': PRIMARY_METRICS['mmpretrain'],
            'mean': round(statistics.mean(found.values()), 2),
            'paper': PAPER_AVERAGE if is_papers(model, head) else None,
            'source': SOURCE if is_papers(model, head) else None,
        }
        for (model, head, criterion), found in best.items()
        if len(found) == len(PAPER_SIX)
    ]


def hide_constants(
    rows: Sequence[Mapping[str, Any]],
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Take out the columns that say the same in all rows, or nothing.

    Args:
        rows: As :func:`group_runs` gives them.

    Returns:
        Rows with the other columns, and what is the same in all of them, without what is None.

    Example:
        >>> hide_constants([dict(mean=1, head='a', seeds=None), dict(mean=2, head='a')])
        ([{'mean': 1}, {'mean': 2}], {'head': 'a'})
    """
    columns = list(dict.fromkeys(key for row in rows for key in row))
    same = {}
    for column in columns:
        cells = [row.get(column) for row in rows]
        alike = all(cell == cells[0] for cell in cells) and len(rows) > 1
        if column not in ALWAYS_SHOWN and (alike or all(cell is None for cell in cells)):
            same[column] = cells[0]
    shown = [{key: cell for key, cell in row.items() if key not in same} for row in rows]
    return shown, {column: cell for column, cell in same.items() if cell is not None}


def _one_or_all(values: Any, between: str = ', ') -> str | int | None:
    """One value, or all that differ, for a cell."""
    distinct = sorted({value for value in values if value is not None}, key=_by_number)
    if not distinct:
        return None
    return distinct[0] if len(distinct) == 1 else between.join(map(str, distinct))


def _by_number(value: Any) -> tuple[bool, Any]:
    return (True, value) if isinstance(value, str) else (False, value)


def _mean(values: Any, digits: int = 1) -> float | None:
    known = [value for value in values if value is not None]
    return round(statistics.mean(known), digits) if known else None


def _largest(values: Any) -> int | None:
    return max((value for value in values if value is not None), default=None)
