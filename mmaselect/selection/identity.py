# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""What a selection's result depends on, as text that tells one case from another."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

from mmaselect.diffusion import FrozenDiT
from mmaselect.diffusion.loading import dequantized
from mmaselect.images import CalibrationSet
from mmaselect.images.copies import count_different
from mmaselect.selection.arms import Places
from mmaselect.selection.grid import TimestepGrid
from mmaselect.selection.options import SelectionOptions
from mmaselect.selection.ranks import check_agreement, from_rank_zero, gather_answers, rank_and_size
from mmaselect.selection.result import SELECTION_VERSION, SelectionResult

#: Packages whose classes are told apart by a version, and not by their source.
_VERSIONED = ('mmaselect', 'torch', 'torchmetrics', 'diffusers', 'abc', 'builtins', 'typing')

#: Stands in the settings' ``code`` where the source of a class cannot be read.
UNREADABLE = 'unreadable'


def sweep_settings(
    dit: FrozenDiT,
    calibration: CalibrationSet,
    options: SelectionOptions,
    grid: TimestepGrid,
    race: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Everything that a sweep's result depends on, ready for JSON.

    That leaves out the batch size and the number of ranks. All ranks call it together: each reads
    its share of the images.

    Args:
        dit: The frozen model.
        calibration: The images, with the views that the criteria compare.
        options: Criteria and seed.
        grid: The timesteps.
        race: How images are taken: round ends, confidence of the race, and where the sweep may end;
            None where all timesteps see all images.

    Raises:
        ValueError: If a calibration image cannot be read.
        RuntimeError: If ranks see different images, models or versions.
    """
    rank, world_size = rank_and_size()
    needs_labels = any(criterion.needs_labels for criterion in options.criteria.values())

    def describe_model(tell: Callable[[str], None]) -> dict[str, Any]:
        num_tokens = dit.num_tokens(calibration.image_size)
        classes = (*map(type, options.criteria.values()), type(dit.family))
        try:
            code = code_identity(*classes)
        except LookupError as error:
            code = {UNREADABLE: str(error)}
        return dict(model_identity(dit, grid.reachable, num_tokens), code=code)

    def hash_share(tell: Callable[[str], None]) -> dict[int, tuple[str, str, bytes]]:
        hashes = {}
        for position in range(rank, len(calibration), world_size):
            tell(f'reading {calibration.source.name(calibration.chosen[position])}')
            labels = calibration.labels([position]) if needs_labels else None
            label = '' if labels is None else _hash(labels.numpy().tobytes())
            image, small = calibration.identify(position)
            hashes[position] = (image, label, small)
        return hashes

    model = gather_answers(describe_model)[rank]
    if world_size > 1:
        check_agreement(gather_answers(lambda tell: _facts(calibration, options, grid, model)))
    hashes = {p: found for share in gather_answers(hash_share) for p, found in share.items()}
    labels = [hashes[position][1] for position in range(len(hashes))]
    settings = dict(
        selection_version=SELECTION_VERSION,
        **model,
        images=calibration.fingerprint({p: image for p, (image, _, _) in hashes.items()}),
        labels=_hash(''.join(labels).encode()) if any(labels) else None,
        num_images=len(calibration),
        distinct_images=count_different([hashes[p][2] for p in range(len(hashes))]),
        image_size=calibration.image_size,
        **grid.settings(),
        **Places.of(dit).settings(),
        criteria=options.criterion_configs,
        seed=options.seed,
        views=None if calibration.views is None else asdict(calibration.views),
    )
    if race is not None:
        settings['race'] = race
    if options.top > 1:
        settings['top'] = options.top
    return from_rank_zero(json.loads(json.dumps(settings, default=str)))


def _facts(
    images: CalibrationSet, options: SelectionOptions, grid: TimestepGrid, model: Mapping[str, Any]
) -> dict[str, Any]:
    """What must be the same on all ranks, by its name in a message."""
    ends = {0, len(images) - 1}
    names = [Path(images.source.name(index)).name for index in images.chosen]
    return {
        'the number of images': len(images.source),
        'the names of the images': _hash('\n'.join(names).encode())[:12],
        'the pixels of the first and the last image': [
            images.hash_image(position)[:12] for position in sorted(ends)
        ],
        'the size of the images': images.image_size,
        'the timestep grid': list(grid.coarse),
        'the seed': options.seed,
        **{f"the model's {name}": value for name, value in model.items()},
    }


def weights_fingerprint(dit: nn.Module) -> str:
    """Hash of name, shape, precision and every byte of every tensor of the frozen model.

    The transformer's built part, the VAE's encoder and the condition. What is hashed are the
    weights in memory, not the files they came from: these are the ones that are read, however they
    were loaded, cast, quantized or edited, and there is no shortcut that a file's date could
    mislead. Tensors are hashed side by side, at about 0.7 GB a second and core.
    """
    tensors = sorted(_named_tensors(dit), key=lambda item: item[0])
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        digests = pool.map(lambda item: _tensor_digest(*item), tensors)
        return hashlib.sha256(''.join(digests).encode()).hexdigest()


def _named_tensors(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """Name, module and attribute of all parameters and buffers."""
    for prefix, module in model.named_modules():
        own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        for name, _ in own:
            yield f'{prefix}.{name}', module, name


def _tensor_digest(name: str, module: nn.Module, attribute: str) -> str:
    tensor = getattr(module, attribute).detach()
    if tensor.is_meta and hasattr(module, '_hf_hook'):
        # accelerate keeps it elsewhere, on disk or in main memory, until it is needed.
        from accelerate.utils import align_module_device

        with align_module_device(module, 'cpu'):
            return _digest(name, getattr(module, attribute).detach())
    return _digest(name, tensor)


def _digest(name: str, tensor: Tensor) -> str:
    digest = hashlib.sha256(f'{name}{tuple(tensor.shape)}{tensor.dtype}'.encode())
    tensor = dequantized(tensor)
    if not tensor.is_meta:
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def model_identity(dit: FrozenDiT, timesteps: Sequence[int], num_tokens: int) -> dict[str, Any]:
    """What tells one frozen model from another, as it is read at some timesteps.

    Args:
        dit: The frozen model.
        timesteps: Where it is read: of the scheduler's config, what counts is the noise there.
        num_tokens: Image tokens of one image, on which the noise of some families depends.
    """
    levels = [asdict(dit.process.at(step, num_tokens)) for step in timesteps]
    return dict(
        weights=weights_fingerprint(dit),
        **_structure(dit),
        scheduler=_hash_json(levels),
        dtype=str(dit.dtype),
        blocks=list(dit.blocks),
        features=list(dit.feature_names),
        **(dict(joined=dit.keys) if dit.is_joined else {}),
        versions=dict(torch=torch.__version__, diffusers=diffusers.__version__),
    )


def check_result_model(result: SelectionResult, dit: FrozenDiT) -> None:
    """Check that a selection was made with the model that is to be read.

    Class, configs and the published model must agree. Weights are compared where they can be: where
    both were built to the same depth, in the same precision. A result without a record of its model
    is not checked.

    Args:
        result: The selection.
        dit: The model.

    Raises:
        ValueError: If it was another one.
    """
    told = result.settings
    if 'transformer_config' not in told:
        return
    found = json.loads(json.dumps(_structure(dit), default=str))
    changed = [name for name, value in found.items() if told.get(name) != value]
    same_part = told.get('dtype') == str(dit.dtype) and max(told.get('blocks') or [-1]) == max(
        dit.blocks
    )
    if not changed and same_part and told.get('weights') != weights_fingerprint(dit):
        changed = ['weights, or condition']
    if changed:
        raise ValueError(
            f'the selection was made with another model (its {", ".join(changed)} differ): '
            f'timestep {result.timestep} says nothing of this one. Select with this model, or give '
            f'the number itself'
        )


def _structure(dit: FrozenDiT) -> dict[str, Any]:
    """What a model is but for the values of its weights."""
    vae = getattr(dit.codec, 'vae', None)
    return dict(
        transformer=dit.family.transformer_class,
        transformer_config=_without_origin(dit.family.config),
        vae=type(dit.codec).__name__,
        vae_config=None if vae is None else _without_origin(vae.config),
    )


def _without_origin(config: Mapping[str, Any]) -> dict[str, Any]:
    """A diffusers config without where it came from, and which version wrote it."""
    return {
        key: value
        for key, value in config.items()
        if not key.startswith('_') or key == '_class_name'
    }


def _hash_json(data: Any) -> str:
    return _hash(json.dumps(data, default=str).encode())


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def code_identity(*classes: type) -> dict[str, str]:
    """Hashes of the files that define classes and their bases, but for those of known packages.

    The whole file, as a class may call functions next to it; what it imports is not followed.

    Raises:
        LookupError: If there is no source to read.
    """
    found = {}
    for base in (base for cls in classes for base in cls.__mro__):
        if base.__module__.partition('.')[0] in _VERSIONED:
            continue
        module = sys.modules.get(base.__module__)
        try:
            source = inspect.getsource(
                base if module is None or not hasattr(module, '__file__') else module
            )
        except (OSError, TypeError) as error:
            raise LookupError(
                f'the source of {base.__module__}.{base.__qualname__} cannot be read'
            ) from error
        found[f'{base.__module__}.{base.__qualname__}'] = _hash(source.encode())
    return found
