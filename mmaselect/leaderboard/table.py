# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""From evaluated runs to one table: what belongs together, and the paper's numbers beside it."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

#: Toolbox to the metric that a table shows.
PRIMARY_METRICS = {'mmpretrain': 'accuracy/top1', 'mmseg': 'mIoU', 'mmdet': 'coco/bbox_mAP'}
#: Top-1 accuracies that the paper states (arXiv 2603.25758), by dataset class.
PAPER_ACCURACIES = {'Flowers102': 90.6, 'StanfordCars': 86.1}
#: Its six fine-grained datasets, and their average.
PAPER_SIX = ('CUB', 'NABirds', 'Flowers102', 'StanfordDogs', 'StanfordCars', 'FGVCAircraft')
PAPER_AVERAGE = 82.5


def group_runs(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row for each setting: mean and deviation over its runs.

    Args:
        results: Of single runs: ``setting, dataset, model, head, block, feature, timestep, metric,
            value, trained, total, selection_seconds, selection_evaluations, train_memory,
            test_memory``.

    Returns:
        Rows in the order of datasets; the best first within one.
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for result in results:
        groups.setdefault(result['setting'], []).append(result)
    rows = []
    for runs in groups.values():
        first = runs[0]
        values = [run['value'] for run in runs]
        # The others are in percent.
        digits = 4 if first['metric'] == PRIMARY_METRICS['mmdet'] else 2
        rows.append(
            {
                'data set': first['dataset'],
                'model': first['model'],
                'head': first['head'],
                'block': first['block'],
                'feature': first['feature'],
                'timestep': _one_or_all(run['timestep'] for run in runs),
                'metric': first['metric'],
                'mean': round(statistics.mean(values), digits),
                'deviation': round(statistics.stdev(values), digits) if len(values) > 1 else None,
                'runs': len(values),
                'paper': PAPER_ACCURACIES.get(first['dataset'])
                if first['metric'] == PRIMARY_METRICS['mmpretrain']
                else None,
                'trained (M)': round(first['trained'] / 1e6, 3),
                'total (M)': round(first['total'] / 1e6, 3),
                'selection (s)': _mean(run['selection_seconds'] for run in runs),
                'selection (evaluations)': _mean(run['selection_evaluations'] for run in runs),
                'training GPU (MB)': _largest(run['train_memory'] for run in runs),
                'testing (MB)': _largest(run['test_memory'] for run in runs),
            }
        )
    rows.sort(key=lambda row: (row['data set'], row['metric'], -row['mean']))
    return rows + fine_grained_averages(rows)


def fine_grained_averages(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for each model and head that has all six fine-grained datasets of the paper."""
    best: dict[tuple[str, str], dict[str, float]] = {}
    for row in rows:
        if row['data set'] in PAPER_SIX and row['metric'] == PRIMARY_METRICS['mmpretrain']:
            found = best.setdefault((row['model'], row['head']), {})
            # Rows come best first: blocks and features may differ among datasets.
            found.setdefault(row['data set'], row['mean'])
    return [
        {
            'data set': 'average of the six fine-grained',
            'model': model,
            'head': head,
            'metric': PRIMARY_METRICS['mmpretrain'],
            'mean': round(statistics.mean(found.values()), 2),
            'paper': PAPER_AVERAGE,
        }
        for (model, head), found in best.items()
        if len(found) == len(PAPER_SIX)
    ]


def _one_or_all(values: Any) -> str | int | None:
    """One value, or all that differ, for a cell."""
    distinct = sorted({value for value in values if value is not None})
    if not distinct:
        return None
    return distinct[0] if len(distinct) == 1 else ', '.join(map(str, distinct))


def _mean(values: Any) -> float | None:
    known = [value for value in values if value is not None]
    return round(statistics.mean(known), 1) if known else None


def _largest(values: Any) -> int | None:
    return max((value for value in values if value is not None), default=None)
