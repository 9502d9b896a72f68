# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Which entry of a config is wrong, where the toolboxes' own errors do not say it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from mmengine.config import Config
from mmengine.runner import Runner
from torch import nn

from mmaselect.checks import is_sequence
from mmaselect.images.sources import check_calibration
from mmaselect.launch.config import type_name

#: Packages whose heads read all maps that they state, in the channels that they state.
_KNOWN = ('mmaselect', 'mmdet', 'mmpretrain', 'mmseg')
#: Attributes of a model that hold heads.
_HEADS = ('decode_head', 'auxiliary_head', 'head')
#: What PyTorch raises where shapes, indices or labels do not fit.
_RAW = (AssertionError, IndexError, RuntimeError, ValueError)


def check_calibration_is_there(config: Config) -> None:
    """Check that a run which has to select its timestep has images for it, before it is built.

    Args:
        config: The run's config; whether it resumes, or loads a checkpoint, is settled.

    Raises:
        FileNotFoundError: If the folder or file of calibration images does not exist.
        ValueError: If there is no ``calibration``, or it cannot be one.
    """
    backbone = (config.get('model') or {}).get('backbone') or {}
    if type_name(backbone) != 'ASelecTDiT' or config.get('load_from'):
        return
    timestep = backbone.get('timestep', 'auto')
    steps = timestep.get('steps', 'auto') if isinstance(timestep, Mapping) else timestep
    if 'auto' not in (steps if is_sequence(steps) else [steps]):
        return
    calibration = backbone.get('calibration')
    missing = check_calibration(calibration)
    if calibration is None:
        raise ValueError(
            "model.backbone.timestep is 'auto', and model.backbone.calibration is not given: set "
            'it to the config of a dataset (usually the training set) or to a folder of images; '
            'or set timestep to a number'
        )
    if missing is not None:
        raise FileNotFoundError(
            f'model.backbone.calibration={missing!r} does not exist: give a folder of images, or '
            f'the config of a dataset'
        )


def _bare(model: Any) -> Any:
    """A model without what wraps it for ranks and for test-time augmentation."""
    while isinstance(getattr(model, 'module', None), nn.Module):
        model = model.module
    return model


def _all_heads(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The heads of a model, and how its config names them."""
    for name in _HEADS:
        found = getattr(model, name, None)
        if isinstance(found, nn.ModuleList):
            yield from ((f'model.{name}[{place}]', head) for place, head in enumerate(found))
        elif isinstance(found, nn.Module):
            yield f'model.{name}', found


def _maps_in_words(widths: list[int]) -> str:
    if len(widths) == 1:
        return f'one map, of {widths[0]} channels'
    return f'{len(widths)} maps, of {", ".join(map(str, widths))} channels'


def wrong_entries(model: nn.Module, known_only: bool = False) -> list[str]:
    """Entries of a model's config that do not fit the maps that its backbone gives.

    Args:
        model: The model; nothing is found in one without an ASelecTDiT.
        known_only: Whether to look at necks and heads of the toolboxes alone, which have one
            meaning for these entries.

    Returns:
        list[str]: A sentence for each, with the number in the config and the one that fits.
    """
    from mmaselect.models import ASelecTDiT

    model = _bare(model)
    backbone = getattr(model, 'backbone', None)
    if not isinstance(backbone, ASelecTDiT):
        return []
    widths = list(backbone.out_channels)
    gives = f'the backbone gives {_maps_in_words(widths)}'
    neck = getattr(model, 'neck', None)
    if isinstance(neck, nn.Module) and type(neck).__name__ != 'GlobalAveragePooling':
        stated = getattr(neck, 'in_channels', None)
        is_known = type(neck).__module__.partition('.')[0] in _KNOWN
        if is_sequence(stated) and list(stated) != widths and (is_known or not known_only):
            return [f'model.neck.in_channels is {list(stated)}, and {gives}']
        return []  # what it gives is its own
    lines = []
    for name, head in _all_heads(model):
        if known_only and type(head).__module__.partition('.')[0] not in _KNOWN:
            continue
        lines += _wrong_of_head(name, head, widths, gives)
    return lines


def _wrong_of_head(name: str, head: nn.Module, widths: list[int], gives: str) -> list[str]:
    index, stated = getattr(head, 'in_index', -1), getattr(head, 'in_channels', None)
    places = list(index) if is_sequence(index) else [index]
    outside = [place for place in places if not -len(widths) <= place < len(widths)]
    if outside:
        allowed = f'0 to {len(widths) - 1}' if len(widths) > 1 else '0'
        return [
            f'{name}.in_index is {index}, and {gives}: an index must be {allowed} (a map for each '
            f'of model.backbone.blocks)'
        ]
    if stated is None:
        return []
    read = [widths[place] for place in places]
    fits = list(stated) == read if is_sequence(stated) else stated == sum(read)
    if fits:
        return []
    shown = list(stated) if is_sequence(stated) else stated
    right = read if is_sequence(stated) else sum(read)
    return [f'{name}.in_channels is {shown}, and {gives}: set it to {right}']


def check_entries(model: nn.Module) -> None:
    """Check that necks and heads of the toolboxes fit the backbone, before anything is computed.

    Raises:
        ValueError: If one does not.
    """
    lines = wrong_entries(model, known_only=True)
    if lines:
        raise ValueError('; '.join(lines))


def _dataset_of(runner: Runner) -> Any:
    """The data set of the loop that runs, or is to run; None if it is not built."""
    for loop in (runner._train_loop, runner._test_loop, runner._val_loop):
        loader = getattr(loop, 'dataloader', None)
        if loader is not None:
            return loader.dataset
    return None


def _labels_in_words(runner: Runner, text: str) -> str | None:
    """The sentence for labels that a head has no class for."""
    found = re.search(r'Target (-?\d+) is out of bounds', text)
    if found is None and not re.search(r'smaller than num_classes|device-side assert', text):
        return None
    counts = {
        f'{name}.num_classes': getattr(head, 'num_classes', None)
        for name, head in _all_heads(_bare(runner.model))
    }
    heads = {name: int(count) for name, count in counts.items() if isinstance(count, int)}
    if not heads:
        return None
    stated = ' and '.join(f'{name} is {count}' for name, count in heads.items())
    label = f'a label of the training set is {found[1]}' if found else 'a label is beyond it'
    meta = getattr(_dataset_of(runner), 'metainfo', None) or {}
    classes = meta.get('classes')
    has = f' Its dataset names {len(classes)} classes.' if classes else ''
    return (
        f'{stated}, so that labels must be 0 to {min(heads.values()) - 1}, and {label}.{has} Set '
        f'num_classes to the number of classes, or correct the labels (reduce_zero_label, '
        f'ignore_index)'
    )


def _batch_in_words(config: Config, runner: Runner) -> str:
    """The sentence for a batch norm that is given one value."""
    loader = config.get('train_dataloader') or {}
    size, dataset = loader.get('batch_size', 1), _dataset_of(runner)
    stated = f'train_dataloader.batch_size is {size}'
    last = len(dataset) % (size * runner.world_size) if dataset is not None else 0
    if size > 1 and last:
        stated += f', and the {len(dataset)} images of the dataset leave {last} for the last batch'
    return (
        f'a batch norm needs at least 2 values of each channel to train, and it got 1: {stated}. '
        f'Set it to 2 or more, with drop_last=True in train_dataloader, or use another norm_cfg '
        f"(dict(type='GN', num_groups=...)) in the head"
    )


@contextmanager
def naming_entries(config: Config, runner: Runner) -> Iterator[None]:
    """An error of the toolbox gets the sentence that names the entry of the config behind it.

    Args:
        config: The config of the run.
        runner: The runner, which trains or tests in the block.

    Raises:
        ValueError: In place of an error whose cause is an entry of the config.
    """
    try:
        yield
    except _RAW as error:
        text = str(error)
        lines: list[str] = []
        if 'Expected more than 1 value per channel' in text:
            lines = [_batch_in_words(config, runner)]
        elif (labels := _labels_in_words(runner, text)) is not None:
            lines = [labels]
        elif type(error) in (AssertionError, IndexError, RuntimeError):
            lines = wrong_entries(runner.model)
        if not lines:
            raise
        raise ValueError(f'{"; ".join(lines)} ({type(error).__name__}: {text})') from error
