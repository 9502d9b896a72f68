# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""What the frozen part gives for an image, computed once and kept on disk.

An image is known by its content: the key of an entry is a hash of the very tensor that would go
into the frozen part. So the data set, its order and its workers do not matter, a flipped image is
simply another image, and a hit can not be a wrong one. Everything else that the values depend on
(weights, timestep, noise, blocks, precisions, image size) tells one folder from another.
"""

from __future__ import annotations

import os
import shutil
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

import diffusers
import torch
from torch import Tensor

from mmaselect.checks import check_path, choice, is_number, keywords, shorten
from mmaselect.diffusion import FrozenDiT, TapKey
from mmaselect.diffusion.codec import PixelCodec
from mmaselect.diffusion.finite_watch import explain
from mmaselect.diffusion.loading import parse_dtype
from mmaselect.diffusion.map_reader import Maps
from mmaselect.files import cache_root
from mmaselect.models.backbones.tensor_store import (
    KEY_SIZE,
    TensorStore,
    folder_bytes,
    key_of,
    need_xxhash,
)
from mmaselect.row_checks import CHECK_SIZE
from mmaselect.selection.identity import model_identity, weights_fingerprint
from mmaselect.selection.result import settings_key

KINDS = ('features', 'latents')
#: Format of the folders; another one is another folder.
_VERSION = 3


@dataclass(frozen=True)
class CacheOptions:
    """What is kept of the frozen part's work, and how.

    Attributes:
        kind: ``'features'``, the maps themselves: no pass for an image that was seen before.
            ``'latents'``, what the VAE's encoder gives: noise can then be fresh.
        dtype: Precision of the files: ``'fp32'``, ``'fp16'`` or ``'bf16'``. None for one that loses
            nothing.
        folder: Where they are; ``$MMASELECT_CACHE/frozen`` if None.
        max_gb: Bound of that folder's size, in 10^9 bytes.
    """

    kind: str
    dtype: str | None = None
    folder: str | Path | None = None
    max_gb: float = 50.0

    @classmethod
    def parse(cls, value: str | Mapping[str, Any] | None) -> CacheOptions | None:
        """Options from what a config says; None if there is to be no cache.

        Raises:
            ValueError: If it is none of what is allowed.
        """
        if value is None:
            return None
        if isinstance(value, str):
            value = dict(kind=value)
        if not isinstance(value, Mapping):
            raise ValueError(
                f'cache must be None, one of {", ".join(KINDS)}, or a dict with the kind and any '
                f'of dtype, folder, max_gb; got {shorten(value)}'
            )
        given = keywords('cache', value, ('kind', 'dtype', 'folder', 'max_gb'))
        options = cls(**{'kind': None, **given})
        choice('cache kind', options.kind, KINDS)
        if options.dtype is not None:
            parse_dtype(options.dtype, 'cache dtype')
        if options.folder is not None:
            check_path('cache folder', options.folder)
        if not is_number(options.max_gb) or options.max_gb <= 0:
            raise ValueError(
                f'cache max_gb must be a number above 0, in GB; got {shorten(options.max_gb)}'
            )
        return options

    @property
    def root(self) -> Path:
        """The folder of all stores."""
        return Path(self.folder).expanduser() if self.folder else cache_root() / 'frozen'


class FrozenCache:
    """Features or latents of images, by the images' content.

    Copies of a model (EMA's, say) share it.

    Args:
        dit: The frozen model. Its block and feature may still have to be picked: they must be there
            before the first image comes.
        options: Options of the cache.
        noise: Which noise is added: its seed, and the number of draws that are averaged.

    Raises:
        ValueError: If latents are to be kept of a model that has no VAE.
        ImportError: If xxhash is not installed.
    """

    def __init__(self, dit: FrozenDiT, options: CacheOptions, noise: tuple[int, int]) -> None:
        need_xxhash()
        if options.kind == 'latents' and isinstance(dit.codec, PixelCodec):
            raise ValueError(
                "cache='latents' keeps what a VAE's encoder gives, and this model has none (it "
                "works on pixels). Use cache='features' with noise='fixed', or no cache"
            )
        self.dit, self.options, self.noise = dit, options, noise
        self._stores: dict[tuple[tuple[int, int], int], TensorStore] = {}
        self._base: dict[str, Any] | None = None
        # What is not written yet is written when the model goes, or the process ends.
        weakref.finalize(self, _flush, self._stores, os.getpid())

    def __deepcopy__(self, memo: dict) -> FrozenCache:
        return self

    def __reduce__(self) -> tuple:
        return type(self), (self.dit, self.options, self.noise)

    def _name(self, key: TapKey) -> str:
        """Name of a map in the files: its block; where several features are read, both."""
        block, feature = key
        return str(block) if len(self.dit.feature_names) == 1 else f'{block}.{feature}'

    @property
    def kind(self) -> str:
        """``'features'`` or ``'latents'``."""
        return self.options.kind

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the files. By default one that loses nothing."""
        if self.options.dtype is not None:
            return parse_dtype(self.options.dtype)
        # A mean of several draws, and a latent, are float32.
        exact = self.kind == 'features' and self.noise[1] == 1
        return self.dit.dtype if exact else torch.float32

    # -- what it is -------------------------------------------------------------------------------
    def _grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of tokens of an image (height, width)."""
        return -(-size[0] // self.dit.stride), -(-size[1] // self.dit.stride)

    def about(self, size: tuple[int, int], timestep: int) -> dict[str, Any]:
        """All that the values of an image depend on, but for its content.

        Args:
            size: Height and width of the images, in pixels.
            timestep: Where features are read.
        """
        if self._base is None:
            self._base = self._describe_model()
        about = dict(
            version=_VERSION,
            kind=self.kind,
            stored_as=str(self.dtype),
            image_size=list(size),
            device=self.dit.device.type,
            model=self._base,
        )
        if self.kind == 'features':
            rows, columns = self._grid(size)
            about['noise'] = dict(seed=self.noise[0], draws=self.noise[1])
            about['level'] = asdict(self.dit.process.at(timestep, rows * columns))
        return about

    def _describe_model(self) -> dict[str, Any]:
        if self.kind == 'features':
            # The noise level is told for each image size.
            return model_identity(self.dit, [], 0)
        codec: Any = self.dit.codec
        return dict(
            weights=weights_fingerprint(codec),
            codec=type(codec).__name__,
            config={k: str(v) for k, v in codec.vae.config.items() if not k.startswith('_')},
            dtype=str(codec.vae.dtype),
            stride=self.dit.stride,
            versions=dict(torch=torch.__version__, diffusers=diffusers.__version__),
        )

    def entry_bytes(self, size: tuple[int, int]) -> int:
        """Bytes that an image of a size (height, width) takes on disk."""
        rows, columns = self._grid(size)
        if self.kind == 'features':
            channels = sum(map(self.dit.channels, self.dit.keys))
            values, tensors = channels * rows * columns, len(self.dit.keys)
        else:
            tensors = 1
            values = self.dit.family.in_channels * rows * columns * self.dit.family.patch_size**2
        return values * self.dtype.itemsize + KEY_SIZE + CHECK_SIZE * tensors

    def store(self, size: tuple[int, int], timestep: int) -> TensorStore:
        """Where the values of images of a size (height, width) are."""
        place = (size, timestep if self.kind == 'features' else 0)
        if place not in self._stores:
            about = self.about(size, timestep)
            root = self.options.root
            self._stores[place] = TensorStore(
                root / f'{self.kind}-{settings_key(about)}', about, root, self.options.max_gb * 1e9
            )
        return self._stores[place]

    # -- use --------------------------------------------------------------------------------------
    def maps(self, images: Tensor, timestep: int, compute: Callable[[Tensor], Maps]) -> Maps:
        """Maps of a batch, by block and feature: see `fetch`."""

        def named(missing: Tensor) -> dict[str, Tensor]:
            return {self._name(key): value for key, value in compute(missing).items()}

        found = self.fetch(images, timestep, named)
        return {key: found[self._name(key)] for key in self.dit.keys}

    def latent(self, images: Tensor, timestep: int, compute: Callable[[Tensor], Tensor]) -> Tensor:
        """Clean latents of a batch, in float32: see `fetch`."""
        found = self.fetch(images, timestep, lambda missing: {'latent': compute(missing)})
        return found['latent'].float()

    def fetch(
        self, images: Tensor, timestep: int, compute: Callable[[Tensor], Mapping[str, Tensor]]
    ) -> dict[str, Tensor]:
        """The values of a batch; only those that are not stored are computed.

        The images are copied to the CPU to be hashed: on a GPU a step waits for that.

        Args:
            images: (B, 3, H, W), as they would go into the frozen part.
            timestep: Where features are read.
            compute: Takes images, and returns tensors (images, ...) by name.

        Returns:
            dict: By name (B, ...), in the precision of the files whether they were stored or not,
            on the device of the images.

        Raises:
            FloatingPointError: If what is computed is not finite.
            ValueError: If it is too large for the precision of the files.
        """
        store = self.store((images.shape[-2], images.shape[-1]), timestep)
        keys = image_keys(images)
        entries = store.find(keys)
        first = {key: row for row, key in reversed(list(enumerate(keys)))}
        missing = sorted(row for key, row in first.items() if entries[row] is None)
        if missing:
            subset = images if len(missing) == len(images) else images[missing]
            fresh = {}
            for name, value in compute(subset).items():
                fresh[name] = value.to(self.dtype).cpu()
                if not bool(fresh[name].isfinite().all()):
                    self._refuse(value, subset, timestep)
            new = {keys[row]: (fresh, number) for number, row in enumerate(missing)}
            store.add(list(new), fresh)
            entries = [entry or new[key] for key, entry in zip(keys, entries, strict=True)]
        found = [entry for entry in entries if entry is not None]
        return {
            name: torch.stack([tensors[name][row] for tensors, row in found]).to(images.device)
            for name in found[0][0]
        }

    def _refuse(self, values: Tensor, images: Tensor, timestep: int) -> NoReturn:
        if not bool(values.isfinite().all()):
            raise FloatingPointError(explain(self.dit, images, timestep))
        raise ValueError(
            f'{self.kind} overflow in {str(self.dtype)[6:]}: their largest is '
            f"{values.abs().max().item():.3g}. Set the cache's dtype to 'bf16' or 'fp32'"
        )

    def flush(self) -> None:
        """Write what is not written yet."""
        _flush(self._stores, os.getpid())

    # -- before a run -----------------------------------------------------------------------------
    def check_room(
        self, wanted: Mapping[str, tuple[int, int, tuple[int, int]]], timesteps: Sequence[int]
    ) -> str:
        """Check that all that a run will want to keep fits, and say what that is.

        Args:
            wanted: For each set of images: how many there are, in how many variants each comes,
                and their size.
            timesteps: Where features are read.

        Returns:
            str: What will be needed, and where.

        Raises:
            ValueError: If it is more than ``max_gb`` or the disk allow.
        """
        root = self.options.root
        steps = timesteps if self.kind == 'features' else timesteps[:1]
        stores = {self.store(size, step).folder for _, _, size in wanted.values() for step in steps}
        there = sum(folder_bytes(folder) for folder in stores)
        others = folder_bytes(root) - there
        needed = len(steps) * sum(
            n * variants * self.entry_bytes(size) for n, variants, size in wanted.values()
        )
        parts = ' and '.join(
            f'{n:,} {name} images' + (f' in about {variants} variants' if variants > 1 else '')
            for name, (n, variants, _) in wanted.items()
        )
        at = f' at {len(steps)} timesteps' if len(steps) > 1 else ''
        existing = next(p for p in (root, *root.parents) if p.is_dir())
        free = shutil.disk_usage(existing).free
        text = (
            f'{self.kind} of {parts}{at} take {_size(needed)} as {str(self.dtype)[6:]} in {root} '
            f'({_size(there)} are there already; max_gb={self.options.max_gb:g}, other runs hold '
            f'{_size(others)}, {_size(free)} of the disk are free)'
        )
        too_much = needed + others > self.options.max_gb * 1e9
        if too_much or needed - there > free:
            raise ValueError(
                f'the cache is too small: {text}. '
                + ('Raise max_gb' if too_much else 'Name another folder')
                + f", take dtype='bf16', read fewer blocks, remove what other runs left in {root}, "
                + ("or keep latents only (cache='latents')" if self.kind == 'features' else '')
                + ', or set cache=None'
            )
        return text


def image_keys(images: Tensor) -> list[bytes]:
    """A hash of each image's values, (B, 3, H, W) in float32: XXH3, of KEY_SIZE bytes."""
    pixels = images.detach().float().cpu().contiguous().numpy()
    return [key_of(image.data) for image in pixels]


def _flush(stores: Mapping[Any, TensorStore], owner: int) -> None:
    if os.getpid() == owner:
        for store in stores.values():
            store.flush()


def _size(count: float) -> str:
    return f'{count / 1e9:.1f} GB' if count >= 1e8 else f'{count / 1e6:.1f} MB'
