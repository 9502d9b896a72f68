# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Features of a folder of images as files: written once, read by whatever is trained on them.

A folder of features holds ``index.json``, which says what they are, and shards
``features-00000.safetensors``, ... with one tensor (images, C, H, W) for each block and feature.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmaselect.apis.extraction import FORMATS, Extraction, lock, rank_and_world
from mmaselect.apis.features import FeatureExtractor
from mmaselect.apis.selection import select_timestep
from mmaselect.apis.stored_features import (
    FORMAT,
    INDEX,
    DamagedFeaturesError,
    StoredFeatures,
    index_key,
    load_features,
    read_index,
    tensor_name,
    write_index,
)
from mmaselect.checks import (
    MAX_SIDE,
    any_spelling,
    check_path,
    choice,
    flag,
    is_whole_number,
    seed_number,
    shorten,
    whole_number,
)
from mmaselect.diffusion import ModelSource
from mmaselect.diffusion.model_source import check_flat_names
from mmaselect.images.units import ImageUnits, image_units, local_folders
from mmaselect.report import save_report
from mmaselect.selection import SelectionOptions, SelectionResult
from mmaselect.selection.identity import check_result_model, model_identity
from mmaselect.selection.options import not_selected

__all__ = ['StoredFeatures', 'load_features', 'save_features']

POOLS = ('none', 'mean')
STORED_DTYPES = {'fp32': torch.float32, 'fp16': torch.float16, 'bf16': torch.bfloat16}
#: Images that an automatic timestep is picked on, at most, where they are in tar or parquet files.
_CALIBRATION_IMAGES = 1024


@any_spelling
def save_features(
    images: Any,
    out: str | Path,
    pretrained: str | Path | Mapping[str, Any] | ModelSource,
    *,
    timestep: int | str | SelectionResult = 'auto',
    selection: SelectionOptions | Mapping[str, Any] | str | None = None,
    blocks: Sequence[int] | int | str | None = None,
    feature: str | Sequence[str] = 'query',
    image_size: int | None = None,
    pool: str = 'none',
    store: str = 'fp32',
    to: str = 'safetensors',
    shard_size: int = 256,
    batch_size: int = 16,
    workers: int | None = None,
    column: str | None = None,
    seed: int = 0,
    dtype: str | torch.dtype = 'auto',
    device: str | torch.device | None = None,
    overwrite: bool = False,
    progress: bool = True,
    **model_kwargs: Any,
) -> StoredFeatures | Path:
    """Write the features of every image of a folder, or of tar shards, tables and object stores.

    A run that was stopped resumes: shards that are there are kept, if the model, the settings and
    the content of their images are the same, and if they are what was written. Any number of
    processes (``torchrun``, ``srun``) share the work if each calls this with the same arguments and
    ``out`` on a file system that all see; the files are the same bytes as those of one process.

    Args:
        images: Folder, searched recursively, or what else
            :func:`~mmaselect.images.units.image_units` takes: tar shards, parquet files, data sets
            of ``datasets``, addresses with a scheme that fsspec knows.
        out: Folder to write to.
        pretrained: Hub id, local pipeline folder, or ``mmaselect://NAME``.
        timestep: Where to read: a number, a :class:`SelectionResult`, or ``'auto'`` to pick it on
            these images first (``selection.json`` and ``selection.png`` are then in ``out`` too).
        selection: How ``'auto'`` picks: ``'paper'`` (
            :class:`~mmaselect.selection.PaperHFR` says what it loses), ``'fast'``, or a dict with
            some of the fields of :class:`~mmaselect.selection.SelectionOptions`. Size, seed and
            batch are those below.
        blocks: Blocks to read; the family's default if None. ``'auto'`` picks one on these images,
            with the timestep or at a given one; ``'auto:4'`` four.
        feature: One or more of ``'query'``, ``'key'``, ``'value'``, ``'attention'``, ``'output'``;
            ``'auto'`` picks one.
        image_size: Side, in pixels, that images are scaled and cropped to; the model's own if None.
        pool: ``'none'`` to keep the maps, ``'mean'`` for their mean over positions, (images, C).
        store: ``'fp32'``, ``'fp16'`` or ``'bf16'``, of the files.
        to: ``'safetensors'``, which :func:`load_features` opens; ``'webdataset'``, tar shards with
            an array for each image and feature; or ``'parquet'``, a row for each image. The latter
            two know no bf16.
        shard_size: Images per file; fewer where a tar or a row group of parquet ends.
        batch_size: Images per pass.
        workers: Processes that read and decode images while the model runs; 0 for this one, and
            None for 4 next to an accelerator and 0 on a CPU.
        column: Column of parquet files and data sets: the one that holds encoded images, where
            several do.
        seed: Seed of the noise, which depends on it and on the image size alone.
        dtype: Precision of the frozen weights, or ``'auto'``, as in
            :meth:`FrozenDiT.from_pretrained`.
        device: CUDA if there is one, by default; that of the local rank under a launcher.
        overwrite: Whether to drop features of other settings or images that are there.
        progress: Tell how far all processes are, how fast, and how long it will take.
        model_kwargs: More arguments of :meth:`FrozenDiT.from_pretrained`.

    Returns:
        StoredFeatures | Path: What was written, as :func:`load_features` gives it; the folder where
        it is not safetensors.

    Raises:
        FileExistsError: If ``out`` holds features of another model, other settings or images.
        FileNotFoundError: If there are no such images.
        ImportError: If a package is missing that reads or writes them.
        ValueError: If an argument is out of range, an image cannot be read, or features are too
            large for ``store``.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from mmaselect.apis import load_features, save_features
        >>> folder = Path(tempfile.mkdtemp())
        >>> (folder / 'images').mkdir()
        >>> Image.fromarray(np.zeros((40, 48, 3), np.uint8)).save(folder / 'images' / 'black.png')
        >>> _ = save_features(
        ...     folder / 'images', folder / 'features', 'mmaselect://dit_cifar10', timestep=50,
        ...     progress=False,
        ... )
        >>> stored = load_features(folder / 'features')
        >>> stored.paths
        ['black.png']
        >>> stored[0][3, 'query'].shape
        torch.Size([224, 8, 8])
    """
    further = [name for name in model_kwargs if name not in ('condition', 'value_range')]
    check_flat_names(further, save_features, SelectionOptions.elsewhere())
    choice('pool', pool, POOLS)
    choice('store', store, STORED_DTYPES)
    choice('to', to, FORMATS)
    if store == 'bf16' and to != 'safetensors':
        raise ValueError(f"to={to!r} has no bf16: store 'fp16' or 'fp32', or write safetensors")
    shard_size = whole_number('shard_size', shard_size, 1)
    batch_size = whole_number('batch_size', batch_size, 1)
    if workers is not None:
        workers = whole_number('workers', workers, 0)
    if image_size is not None:
        image_size = whole_number('image_size', image_size, 1, MAX_SIDE)
    seed = seed_number('seed', seed)
    flag('overwrite', overwrite)
    flag('progress', progress)
    is_open = isinstance(blocks, str) or (isinstance(feature, str) and feature == 'auto')
    if is_open and isinstance(timestep, SelectionResult):
        raise ValueError(
            f'blocks={shorten(blocks)}, feature={shorten(feature)}: the selection that timestep '
            f'gives was made at a place: give blocks={timestep.place_arguments[0]}, '
            f'feature={timestep.place_arguments[1]}'
        )
    is_auto = isinstance(timestep, str) and timestep == 'auto'
    if not isinstance(timestep, SelectionResult) and not is_auto:
        if not is_whole_number(timestep):
            raise ValueError(f"timestep must be 'auto' or a whole number, got {shorten(timestep)}")
        timestep = int(timestep)
    unused = None if is_auto or is_open else not_selected(shorten(timestep), selection=selection)
    if unused is not None:
        raise ValueError(f'{unused}: leave out either')
    how = SelectionOptions.parse(selection)
    out = Path(check_path('out', out)).expanduser()
    for folder in local_folders(images):
        if folder.resolve() in (out.resolve(), *out.resolve().parents):
            raise ValueError(
                f'out {str(out)!r} is inside the folder of images, where its plot would be one of '
                f'them: give another folder'
            )
    units = image_units(images, shard_size, column)
    if device is None and torch.cuda.is_available():
        device = f'cuda:{rank_and_world()[2] % torch.cuda.device_count()}'
    picked = None
    if is_open:
        # The sweep is kept in the cache of selections: one process makes it, and others find it.
        with lock(out, 'place'):
            picked = select_timestep(
                pretrained, _calibration(images, units), blocks=blocks, feature=feature,
                selection=how if is_auto else how.replaced(timesteps=[timestep]),
                dtype=dtype, device=device, condition=model_kwargs.get('condition'),
                image_size=image_size, seed=seed, batch_size=batch_size, progress=progress,
            )  # fmt: skip
        blocks, feature = picked.place_arguments
        timestep = picked.timestep
    given = timestep if isinstance(timestep, int) else 0  # what is picked later stands for it
    extract = FeatureExtractor(
        pretrained, given, blocks=blocks, feature=feature, dtype=dtype, device=device, seed=seed,
        **model_kwargs,
    )  # fmt: skip
    dit = extract.dit
    if isinstance(timestep, SelectionResult):
        check_result_model(timestep, dit)
    size = image_size or dit.native_size
    plan: dict[str, Any] = {
        'format': FORMAT,
        'settings': {
            'timestep': timestep if timestep == 'auto' else _timestep_number(timestep),
            'blocks': list(dit.blocks),
            'features': list(dit.feature_names),
            **({'cells': dit.keys} if dit.is_joined else {}),
            'image_size': size,
            'pool': pool,
            'store': store,
            'to': to,
            'shard_size': shard_size,
            'batch_size': batch_size,
            'seed': seed,
        },
        'model': model_identity(dit, [], 0),
    }
    if selection is not None:
        # Folders that were written before this option was there have no such entry.
        plan['settings']['selection'] = str(how)
    plan = json.loads(json.dumps(plan, default=str))
    names = [tensor_name(key) for key in extract.keys]
    if workers is None:
        workers = 0 if dit.device.type == 'cpu' else 4
    work = Extraction(units, out, index_key(plan), names, to, size, shard_size, batch_size, workers)
    with lock(out, 'index'):  # one process picks the timestep, and others wait for it
        index = _start_or_resume(work, plan, overwrite)
        if picked is not None and rank_and_world()[0] == 0:
            save_report(picked, out)
        index['pretrained'] = str(ModelSource.parse(pretrained))
        index['images'] = {**units.listing(), 'units': len(units)}
        if 'timestep' not in index:
            if timestep == 'auto':
                timestep = select_timestep(
                    dit, _calibration(images, units), selection=how, image_size=size,
                    seed=seed, batch_size=batch_size, out=out, progress=progress,
                )  # fmt: skip
            index['timestep'] = dit.process.check_timestep(_timestep_number(timestep))
        tokens = (-(-size // dit.stride)) ** 2
        level = asdict(dit.process.at(index['timestep'], tokens))
        if index.setdefault('level', level) != level:
            raise FileExistsError(_other(out, f'noise {index["level"]} -> {level}'))
        write_index(out, index)
    extract.timestep = index['timestep']

    def read(pixels: list[Any]) -> dict[str, Tensor]:
        maps = extract(pixels)
        return {tensor_name(key): _as_stored(value, pool, store) for key, value in maps.items()}

    work.run(read, progress)
    return StoredFeatures(out) if to == 'safetensors' else out


def _calibration(images: Any, units: ImageUnits) -> Any:
    """Images to pick a timestep on: the folder itself, or the first ones of the units."""
    if local_folders(images):
        return images

    def encoded() -> Any:
        for unit in range(len(units)):
            with units.open(unit) as refs:
                yield from (ref.read() for ref in refs)

    return list(islice(encoded(), _CALIBRATION_IMAGES))


def _timestep_number(timestep: int | str | SelectionResult) -> int:
    return timestep.timestep if isinstance(timestep, SelectionResult) else int(timestep)


def _start_or_resume(work: Extraction, plan: dict[str, Any], overwrite: bool) -> dict[str, Any]:
    """The index of a run: that of the one to resume, or a new one."""
    out = work.out
    try:
        index = read_index(out) if (out / INDEX).is_file() else None
    except DamagedFeaturesError:
        if not overwrite:
            raise
        index = None
    else:
        if index is not None:
            changed = _changes(index, plan)
            if not changed and work.is_of_other_images():
                changed = ['other images']
            if not changed:
                return index
            if not overwrite:
                raise FileExistsError(_other(out, '; '.join(changed)))
    work.remove_all()
    (out / INDEX).unlink(missing_ok=True)
    return dict(plan)


def _changes(index: Mapping[str, Any], plan: Mapping[str, Any]) -> list[str]:
    """What of a run differs from that of the features that are there."""
    found = []
    for part in ('settings', 'model'):
        old, new = index.get(part, {}), plan[part]
        for name in [name for name in new if old.get(name) != new[name]]:
            if name == 'weights':
                found.append('weights or condition of the model')
            elif isinstance(new[name], dict):
                found.append(f'{name} of the model')
            else:
                found.append(f'{name} {old.get(name)!r} -> {new[name]!r}')
    return found


def _other(out: Path, changed: str) -> str:
    return (
        f'{str(out)!r} holds features of another model, other settings or other images '
        f'({changed}): give another folder, or drop them with --overwrite (overwrite=True)'
    )


def _as_stored(maps: Tensor, pool: str, store: str) -> Tensor:
    """A batch's maps as they are stored."""
    if pool == 'mean':
        maps = maps.mean((2, 3))
    packed = maps.to(STORED_DTYPES[store]).cpu().contiguous()
    if not bool(packed.isfinite().all()):
        raise ValueError(
            f'features are not finite in {store}: their largest is {maps.abs().max().item():.3g}. '
            f"Store them as 'fp32', or compute in 'bf16' or 'fp32'"
        )
    return packed
