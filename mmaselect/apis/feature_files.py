# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Features of a folder of images as files: written once, read by whatever is trained on them.

A folder of features holds ``index.json``, which says what they are and of which images, and shards
``features-00000.safetensors``, ... with one tensor (images, C, H, W) for each block and feature.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mmaselect.apis.features import FeatureExtractor
from mmaselect.apis.selection import select_timestep
from mmaselect.checks import (
    MAX_SIDE,
    check_path,
    choice,
    flag,
    is_whole_number,
    seed_number,
    shorten,
    whole_number,
)
from mmaselect.diffusion import ModelSource, TapKey
from mmaselect.files import write_json, written_aside
from mmaselect.images import ImageFolder, resize_and_crop
from mmaselect.selection import SelectionResult

INDEX = 'index.json'
POOLS = ('none', 'mean')
STORED_DTYPES = {'fp32': torch.float32, 'fp16': torch.float16}
FRAMEWORKS = {'torch': 'pt', 'numpy': 'np'}


def save_features(
    images: str | Path,
    out: str | Path,
    pretrained: str | Path | Mapping[str, Any] | ModelSource,
    *,
    timestep: int | str | SelectionResult = 'auto',
    blocks: Sequence[int] | int | None = None,
    features: str | Sequence[str] = 'query',
    image_size: int | None = None,
    pool: str = 'none',
    store: str = 'fp32',
    shard_size: int = 256,
    batch_size: int = 16,
    seed: int = 0,
    dtype: str | torch.dtype = 'fp32',
    device: str | torch.device | None = None,
    overwrite: bool = False,
    progress: bool = True,
    **model_kwargs: Any,
) -> StoredFeatures:
    """Write the features of every image below a folder.

    A run that was stopped goes on where it was: shards that are there are kept, if the settings and
    the images are the same.

    Args:
        images: Folder, searched recursively.
        out: Folder to write to.
        pretrained: Hub id, local pipeline folder, or ``mmaselect://NAME``.
        timestep: Where to read: a number, a :class:`SelectionResult`, or ``'auto'`` to pick it on
            these images first (``selection.json`` and ``selection.png`` are then in ``out`` too).
        blocks: Blocks to read; the family's default if None.
        features: One or more of ``'query'``, ``'key'``, ``'value'``, ``'attention'``, ``'output'``.
        image_size: Side, in pixels, that images are scaled and cropped to; the model's own if None.
        pool: ``'none'`` to keep the maps, ``'mean'`` for their mean over positions, (images, C).
        store: ``'fp32'`` or ``'fp16'``, of the files.
        shard_size: Images per file.
        batch_size: Images per pass.
        seed: Of the noise, which depends on it and on the image size alone.
        dtype: Of the frozen weights, or ``'auto'``, as in :meth:`FrozenDiT.from_pretrained`.
        device: CUDA if there is one, by default.
        overwrite: Whether to drop features of other settings or images that are there.
        progress: Draw progress bars.
        model_kwargs: More arguments of :meth:`FrozenDiT.from_pretrained`.

    Returns:
        StoredFeatures: What was written, as :func:`load_features` gives it.

    Raises:
        FileExistsError: If ``out`` holds features of other settings or images.
        FileNotFoundError: If there is no such folder of images.
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
    choice('pool', pool, POOLS)
    choice('store', store, STORED_DTYPES)
    shard_size = whole_number('shard_size', shard_size, 1)
    batch_size = whole_number('batch_size', batch_size, 1)
    if image_size is not None:
        image_size = whole_number('image_size', image_size, 1, MAX_SIDE)
    seed = seed_number('seed', seed)
    flag('overwrite', overwrite)
    flag('progress', progress)
    is_auto = isinstance(timestep, str) and timestep == 'auto'
    if not isinstance(timestep, SelectionResult) and not is_auto:
        if not is_whole_number(timestep):
            raise ValueError(f"timestep must be 'auto' or a whole number, got {shorten(timestep)}")
        timestep = int(timestep)
    out = Path(check_path('out', out))
    folder = ImageFolder(images)
    if folder.folder.resolve() in (out.resolve(), *out.resolve().parents):
        raise ValueError(
            f'out {str(out)!r} is inside the folder of images, where its plot would be one of '
            f'them: give another folder'
        )
    paths = folder.paths
    extract = FeatureExtractor(
        pretrained, 0, blocks=blocks, features=features, dtype=dtype, device=device, seed=seed,
        **model_kwargs,
    )  # fmt: skip
    size = image_size or extract.dit.native_size
    settings = {
        'pretrained': str(ModelSource.parse(pretrained)),
        'timestep': timestep if timestep == 'auto' else _timestep_number(timestep),
        'blocks': list(extract.dit.blocks),
        'features': list(extract.dit.feature_names),
        'image_size': size,
        'pool': pool,
        'store': store,
        'shard_size': shard_size,
        'seed': seed,
        'dtype': str(extract.dit.dtype).removeprefix('torch.'),
        'model_kwargs': {name: str(value) for name, value in sorted(model_kwargs.items())},
    }
    files = [[path.relative_to(folder.folder).as_posix(), path.stat().st_size] for path in paths]
    index = _start_or_resume(out, {'settings': settings, 'images': files}, overwrite)
    if 'timestep' not in index:
        if timestep == 'auto':
            timestep = select_timestep(
                extract.dit, images, image_size=size, seed=seed, batch_size=batch_size, out=out,
                progress=progress,
            )  # fmt: skip
        index['timestep'] = extract.dit.process.check_timestep(_timestep_number(timestep))
        write_json(out / INDEX, index)
    extract.timestep = index['timestep']

    starts = range(0, len(paths), shard_size)
    missing = [start for start in starts if not _is_whole(_shard(out, start // shard_size))]
    batches = [
        range(first, min(first + batch_size, start + shard_size, len(paths)))
        for start in missing
        for first in range(start, min(start + shard_size, len(paths)), batch_size)
    ]
    written: list[dict[str, Tensor]] = []
    for batch in track(
        batches,
        description='reading features',
        console=Console(stderr=True),
        disable=not progress,
    ):
        maps = extract([resize_and_crop(folder.load(position), size) for position in batch])
        written.append(
            {_tensor_name(key): _as_stored(value, pool, store) for key, value in maps.items()}
        )
        if batch[-1] + 1 == len(paths) or (batch[-1] + 1) % shard_size == 0:
            shard = {name: torch.cat([part[name] for part in written]) for name in written[0]}
            with written_aside(_shard(out, batch[-1] // shard_size)) as aside:
                save_file(shard, aside)
            written = []
    return StoredFeatures(out)


def load_features(folder: str | Path, framework: str = 'torch') -> StoredFeatures:
    """Open a folder that :func:`save_features`, or ``mmaselect features``, has written.

    Args:
        folder: The folder.
        framework: ``'torch'`` for tensors, ``'numpy'`` for arrays.

    Returns:
        StoredFeatures: Memory-mapped: only what is asked for is read. :func:`save_features` has an
        example.
    """
    return StoredFeatures(folder, framework)


class StoredFeatures:
    """Features in files, an image at a time or all at once; a map-style data set of PyTorch's.

    Args:
        folder: What :func:`save_features` has written.
        framework: ``'torch'`` or ``'numpy'``.

    Attributes:
        settings (dict): What the features are: model, blocks, image size, and so on.
        timestep (int): Where they were read.
        paths (list[str]): Image of each entry, from the folder of images.
        keys (tuple[TapKey, ...]): (block, feature) of every map.

    Raises:
        FileNotFoundError: If the folder holds no features, or some of them are missing.
    """

    def __init__(self, folder: str | Path, framework: str = 'torch') -> None:
        choice('framework', framework, FRAMEWORKS)
        self.folder = Path(folder)
        self.framework = framework
        if not (self.folder / INDEX).is_file():
            raise FileNotFoundError(
                f'{str(folder)!r} holds no {INDEX}: give a folder that `mmaselect features` wrote'
            )
        index = json.loads((self.folder / INDEX).read_text(encoding='utf-8'))
        self.settings: dict[str, Any] = index['settings']
        self.paths: list[str] = [path for path, _ in index['images']]
        self.keys: tuple[TapKey, ...] = tuple(
            (block, feature)
            for block in dict.fromkeys(self.settings['blocks'])
            for feature in self.settings['features']
        )
        self._shard_size: int = self.settings['shard_size']
        self._open: dict[int, Any] = {}
        shards = [_shard(self.folder, number) for number in range(self._num_shards)]
        missing = [path.name for path in shards if not path.is_file()]
        if missing:
            raise FileNotFoundError(
                f'{str(folder)!r} lacks {len(missing)} of {len(shards)} files, such as '
                f'{missing[0]}: run the command that writes them again, and it goes on'
            )
        self.timestep: int = index['timestep']

    def __getstate__(self) -> dict[str, Any]:
        # Workers of a DataLoader open the files themselves.
        return {**self.__dict__, '_open': {}}

    @property
    def _num_shards(self) -> int:
        return -(-len(self.paths) // self._shard_size)

    def _file(self, number: int) -> Any:
        if number not in self._open:
            path = _shard(self.folder, number)
            self._open[number] = safe_open(path, framework=FRAMEWORKS[self.framework])
        return self._open[number]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[TapKey, Any]:
        """(block, feature) to the map (C, H, W) of one image, or (C,) where they were pooled."""
        if not -len(self) <= index < len(self):
            raise IndexError(f'index {index} is out of range: there are {len(self)} images')
        number, row = divmod(index % len(self), self._shard_size)
        file = self._file(number)
        return {key: file.get_slice(_tensor_name(key))[row] for key in self.keys}

    def shards(self) -> Iterator[tuple[list[str], dict[TapKey, Any]]]:
        """Paths and features (images, C, H, W) of a file at a time."""
        for number in range(self._num_shards):
            start = number * self._shard_size
            file = self._file(number)
            yield (
                self.paths[start : start + self._shard_size],
                {key: file.get_tensor(_tensor_name(key)) for key in self.keys},
            )

    def stack(self, block: int, feature: str = 'query') -> Any:
        """One feature of all images, (images, C, H, W): a copy in memory.

        Raises:
            KeyError: If it was not stored.
        """
        if (block, feature) not in self.keys:
            raise KeyError(f'{(block, feature)} is not stored; there are {list(self.keys)}')
        parts = [shard[block, feature] for _, shard in self.shards()]
        return torch.cat(parts) if self.framework == 'torch' else np.concatenate(parts)


def _timestep_number(timestep: int | str | SelectionResult) -> int:
    return timestep.timestep if isinstance(timestep, SelectionResult) else int(timestep)


def _tensor_name(key: TapKey) -> str:
    """Name of a tensor in a file."""
    return f'block{key[0]}.{key[1]}'


def _shard(folder: Path, number: int) -> Path:
    return folder / f'features-{number:05d}.safetensors'


def _is_whole(path: Path) -> bool:
    """Whether a file is there and has all that its header promises."""
    try:
        with safe_open(path, framework='np') as file:
            return bool(list(file.keys()))
    except (FileNotFoundError, SafetensorError):
        return False


def _start_or_resume(out: Path, plan: dict[str, Any], overwrite: bool) -> dict[str, Any]:
    """The index of a run: that of the one to go on with, or a new one."""
    path = out / INDEX
    if path.is_file():
        index = json.loads(path.read_text(encoding='utf-8'))
        if all(index.get(name) == value for name, value in plan.items()):
            return index
        if not overwrite:
            raise FileExistsError(_difference(out, index, plan))
    for shard in out.glob('features-*.safetensors'):
        shard.unlink()
    path.unlink(missing_ok=True)
    write_json(path, plan)
    return dict(plan)


def _difference(out: Path, index: dict[str, Any], plan: dict[str, Any]) -> str:
    """Why a run cannot go on with what is in a folder."""
    old, new = index.get('settings', {}), plan['settings']
    changed = [
        f'{name} {old.get(name)!r} -> {value!r}'
        for name, value in new.items()
        if old.get(name) != value
    ] or [f'{len(index.get("images", []))} images -> {len(plan["images"])}, or other ones']
    return (
        f'{str(out)!r} holds features of other settings ({"; ".join(changed)}): give another '
        f'folder, or overwrite them'
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
