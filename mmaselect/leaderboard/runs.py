# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Trained models on disk: where they are, what they are of, and what making them took."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config

from mmaselect.launch.config import type_name
from mmaselect.report.work_dir import find_selections, report_stem
from mmaselect.selection import SelectionResult

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
    """Hash of what a config says next to the seed and the place: equal for repeated runs."""
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


def selection_facts(work_dir: Path) -> dict[str, Any]:
    """Criterion, pick, cost and page of the selection, where there is a selection.json.

    A model with several backbones has a file for each: all picks are told, and the sum of costs.

    Raises:
        ValueError: If the file is not a selection.
    """
    found = {name: SelectionResult.load(path) for name, path in find_selections(work_dir).items()}
    if not found:
        return dict(selection_seconds=None, selection_evaluations=None)
    pages = [work_dir / f'{report_stem(name)}.html' for name in found]
    picks = [f'{name}: {result}' if name else str(result) for name, result in found.items()]
    return dict(
        criterion=', '.join(dict.fromkeys(result.criterion for result in found.values())),
        pick='; '.join(picks),
        selection_seconds=sum(result.seconds for result in found.values()),
        selection_evaluations=sum(result.model_evaluations for result in found.values()),
        page=', '.join(str(page) for page in pages if page.is_file()) or None,
    )


def schedule_of(config: Config) -> str:
    """How long and how a config trains, in words.

    Example:
        >>> schedule_of(Config(dict(
        ...     train_cfg=dict(by_epoch=True, max_epochs=100), train_dataloader=dict(batch_size=8),
        ...     optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.003)))))
        '100 epochs, batch 8, AdamW 0.003'
    """
    length = config.get('train_cfg') or {}
    loader = config.get('train_dataloader') or {}
    optimizer = (config.get('optim_wrapper') or {}).get('optimizer') or {}
    parts = [
        f'{length["max_epochs"]} epochs' if 'max_epochs' in length else '',
        f'{length["max_iters"]} iterations' if 'max_iters' in length else '',
        f'batch {loader["batch_size"]}' if 'batch_size' in loader else '',
        f'{type_name(optimizer)} {optimizer.get("lr", "")}'.strip(),
    ]
    return ', '.join(part for part in parts if part)


def training_memory(work_dir: Path) -> int | None:
    """Peak GPU memory that the training logged, in MB; None where it trained on a CPU.

    Raises:
        ValueError: If a log is damaged.
    """
    peak = None
    for path in work_dir.glob('*/vis_data/scalars.json'):
        try:
            for line in path.read_text(encoding='utf-8').splitlines():
                memory = json.loads(line).get('memory')
                if memory is not None:
                    peak = max(peak or 0, int(memory))
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(
                f'the log {path} is damaged ({error}): remove it, or that line of it'
            ) from error
    return peak
