# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""From evaluated runs to one table: what belongs together, and the paper's numbers beside it."""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config

#: Entries of a config in which runs of one setting may differ.
RUN_KEYS = (
    'work_dir',
    'randomness',
    'load_from',
    'resume',
    'launcher',
    'log_level',
    'log_processor',
    'visualizer',
    'vis_backends',
    'env_cfg',
    'experiment_name',
)
#: Toolbox to the metric that a table shows.
PRIMARY_METRICS = {'mmpretrain': 'accuracy/top1', 'mmseg': 'mIoU'}
#: Top-1 accuracies that the paper states (arXiv 2603.25758), by dataset class.
PAPER_ACCURACIES = {'Flowers102': 90.6, 'StanfordCars': 86.1}
#: Its six fine-grained datasets, and their average.
PAPER_SIX = ('CUB', 'NABirds', 'Flowers102', 'StanfordDogs', 'StanfordCars', 'FGVCAircraft')
PAPER_AVERAGE = 82.5


@dataclass(frozen=True)
class Run:
    """A trained model.

    Attributes:
        config: Its config file.
        checkpoint: Its weights.
        work_dir: Where selection.json and logs may be.
    """

    config: Path
    checkpoint: Path
    work_dir: Path


def find_run(work_dir: str | Path, which: str = 'best') -> Run:
    """The config and checkpoint of a work directory.

    Args:
        work_dir: What a training wrote.
        which: ``'best'``, the checkpoint that validated best (the last one if the training kept
            none), or ``'last'``.

    Raises:
        FileNotFoundError: If the directory, its config or its checkpoint is missing.
        ValueError: If there are several to choose from.
    """
    folder = Path(work_dir)
    if not folder.is_dir():
        raise FileNotFoundError(f'work directory {str(work_dir)!r} does not exist')
    configs = sorted(folder.glob('*.py'))
    if len(configs) != 1:
        raise ValueError(
            f'{str(work_dir)!r} holds {len(configs)} configs '
            f'({", ".join(path.name for path in configs)}), not one: name config and checkpoint '
            f'with --pair'
        )
    best = sorted(folder.glob('best_*.pth')) if which == 'best' else []
    if len(best) > 1:
        raise ValueError(
            f'{str(work_dir)!r} holds several best checkpoints '
            f'({", ".join(path.name for path in best)}): name one with --pair'
        )
    if best:
        return Run(configs[0], best[0], folder)
    pointer = folder / 'last_checkpoint'
    if not pointer.is_file():
        raise FileNotFoundError(
            f'{str(work_dir)!r} holds no checkpoint (no best_*.pth, no last_checkpoint): train '
            f'first, or name one with --pair'
        )
    # The path is that of the machine that trained; the folder may have moved since.
    checkpoint = folder / Path(pointer.read_text(encoding='utf-8').strip()).name
    return check_run(Run(configs[0], checkpoint, folder))


def check_run(run: Run) -> Run:
    """Return the run, or raise a FileNotFoundError if one of its files is missing."""
    for path in (run.config, run.checkpoint):
        if not path.is_file():
            raise FileNotFoundError(f'{str(path)!r} does not exist')
    return run


def setting_of(config: Config) -> str:
    """Hash of what a config says beside the seed and the place: equal for repeated runs."""
    entries = {key: value for key, value in config.to_dict().items() if key not in RUN_KEYS}
    text = json.dumps(entries, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def result_key(run: Run, config: Config) -> str:
    """Hash of what an evaluation depends on: the checkpoint's bytes and the config."""
    digest = hashlib.sha256(setting_of(config).encode())
    with open(run.checkpoint, 'rb') as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()[:24]


#: Datasets of the toolboxes that read whatever folder they are given.
FOLDER_DATASETS = ('CustomDataset', 'BaseSegDataset')


def dataset_name(config: Config) -> str:
    """Class of the test dataset, without its scope and without wrappers.

    A class that reads any folder says nothing: the folder's name is added.
    """
    dataset = config.test_dataloader.dataset
    while isinstance(dataset.get('dataset'), Mapping):
        dataset = dataset.dataset
    name = str(dataset.type).rpartition('.')[2]
    folder = Path(dataset.get('data_root') or '').name
    return f'{name} ({folder})' if folder and name in FOLDER_DATASETS else name


def selection_cost(work_dir: Path) -> dict[str, Any]:
    """Seconds and model evaluations of the selection, where there is a selection.json."""
    path = work_dir / 'selection.json'
    if not path.is_file():
        return dict(selection_seconds=None, selection_evaluations=None)
    result = json.loads(path.read_text(encoding='utf-8'))
    return dict(
        selection_seconds=result['seconds'], selection_evaluations=result['model_evaluations']
    )


def training_memory(work_dir: Path) -> int | None:
    """Peak GPU memory that the training logged, in MB; None where it trained on a CPU."""
    peak = None
    for path in work_dir.glob('*/vis_data/scalars.json'):
        for line in path.read_text(encoding='utf-8').splitlines():
            memory = json.loads(line).get('memory')
            if memory is not None:
                peak = max(peak or 0, int(memory))
    return peak


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
        rows.append(
            {
                'data set': first['dataset'],
                'model': first['model'],
                'head': first['head'],
                'block': first['block'],
                'feature': first['feature'],
                'timestep': _several(run['timestep'] for run in runs),
                'metric': first['metric'],
                'mean': round(statistics.mean(values), 2),
                'deviation': round(statistics.stdev(values), 2) if len(values) > 1 else None,
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


def _several(values: Any) -> str | int | None:
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
