# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Feature maps of a few images at a few timesteps, with what is needed to show them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmaselect.checks import any_spelling, check_image_size, seed_number, whole_number
from mmaselect.diffusion import FrozenDiT, ModelSource, TapKey, draw_noise, noise_seed
from mmaselect.diffusion.codec import PixelCodec
from mmaselect.diffusion.devices import pick_device
from mmaselect.diffusion.model_source import check_flat_names, check_not_loaded
from mmaselect.images import resize_and_crop, to_model_range
from mmaselect.images.inputs import ImageLike, list_images, to_array
from mmaselect.look.colors import scores_to_colors, token_scores, turned_to
from mmaselect.look.position import ENOUGH_FOR_POSITION, colored_noise, position_map
from mmaselect.selection import SelectionResult, parse_timesteps
from mmaselect.selection.identity import check_result_model
from mmaselect.terminal.progress import progress_bar

#: Timesteps that are shown where none are named.
LOOK_GRID = '0:1000:125'
#: Tokens along each side below which a model is looked at in a larger picture.
FEW_TOKENS = 16

#: A timestep and a (block, feature).
Cell = tuple[int, TapKey]


@dataclass(frozen=True)
class Look:
    """What :func:`look_at` gathers.

    Attributes:
        model: Its name, for titles.
        images: (N, H, W, 3), uint8, RGB: as the model sees them.
        names: One for each image.
        stride: Pixels per token.
        timesteps: In increasing order, the pick among them.
        noise_levels: Standard deviation of the noise at each.
        keys: (block, feature) of every map.
        maps: By timestep and (block, feature): (N, C, h, w), float32, on the CPU.
        colors: By the same: (N, h, w, 3), uint8. One timestep's are turned towards those of the one
            before it, so that a thing keeps its color.
        positions: By the same: (C, h, w), the part of every map that depends on position alone. Its
            mean over the tokens is zero. Empty if it was not estimated.
        content_colors: Colors of the maps without that part; empty if it was not estimated.
        inputs: By timestep: (N, h', w', 3), uint8: what the transformer is given, the noisy image.
            For a latent model, the three main directions of the noisy latent as colors.
        num_train_timesteps: Timesteps that there are.
        selection: The selection that the curve is of, if there is one.
    """

    model: str
    images: np.ndarray
    names: tuple[str, ...]
    stride: int
    timesteps: tuple[int, ...]
    noise_levels: tuple[float, ...]
    keys: tuple[TapKey, ...]
    maps: dict[Cell, Tensor]
    colors: dict[Cell, np.ndarray]
    positions: dict[Cell, Tensor]
    content_colors: dict[Cell, np.ndarray]
    inputs: dict[int, np.ndarray]
    num_train_timesteps: int
    selection: SelectionResult | None = None

    @property
    def pick(self) -> int | None:
        """The selected timestep; None without a selection."""
        return None if self.selection is None else self.selection.timestep

    def content(self, step: int, key: TapKey) -> Tensor:
        """A map without the part that depends on position alone.

        Args:
            step: One of the timesteps.
            key: (block, feature).

        Returns:
            Tensor: (N, C, h, w); the map itself if that part was not estimated.
        """
        values, position = self.maps[step, key], self.positions.get((step, key))
        return values if position is None else values - position


@any_spelling
def look_at(
    images: ImageLike | Sequence[ImageLike],
    model: str | Path | Mapping[str, Any] | ModelSource | FrozenDiT,
    *,
    timesteps: str | int | Sequence[int] = LOOK_GRID,
    blocks: Sequence[int] | int | None = None,
    feature: str | Sequence[str] = 'query',
    image_size: int | tuple[int, int] | None = None,
    selection: SelectionResult | None = None,
    batch_size: int = 8,
    seed: int = 0,
    dtype: str | torch.dtype = 'auto',
    device: str | torch.device | None = None,
    progress: bool = True,
    name: str | None = None,
    position_images: int = ENOUGH_FOR_POSITION,
    keys: Sequence[TapKey] | None = None,
    **model_kwargs: Any,
) -> Look:
    """Read a few images at a grid of timesteps.

    Each image has noise of its own, the same at all timesteps: with one draw for two images, equal
    noise would look like a correspondence.

    Tokens of a diffusion transformer hold their position, and at high noise little else. The mean
    map over images of colored noise, which share nothing but positions, estimates that part.

    Args:
        images: One or more, in any form that :class:`~mmaselect.FeatureExtractor` takes.
        model: Hub id, local pipeline folder, ``mmaselect://NAME``, or a model loaded already (then
            without ``blocks``, ``feature``, ``dtype`` and ``model_kwargs``).
        timesteps: ``'START:STOP:STEP'`` or a list.
        blocks: Blocks to read; the family's default if None.
        feature: One or more of ``'query'``, ``'key'``, ``'value'``, ``'attention'``, ``'output'``.
        image_size: Side of the square that each image is scaled and cropped to, or (height, width),
            in pixels. If None, the model's own size, or what gives 32 tokens a side where its own
            gives fewer than 16.
        selection: A result of this model: its pick is shown too, and marked.
        batch_size: Images per pass.
        seed: Seed of the noise.
        dtype: Precision of the frozen weights.
        device: CUDA if there is one, by default.
        progress: Draw a progress bar.
        name: How titles call the model; what ``model`` says if None.
        position_images: Images of colored noise that are read at each timestep to estimate what
            depends on position alone; 0 estimates nothing. Where as many images are given, these
            serve, and no others are read.
        keys: Some of the model's (block, feature); all of them if None.
        model_kwargs: More arguments of :meth:`FrozenDiT.from_pretrained`.

    Raises:
        ValueError: If an image cannot be read, an argument is out of range, or the selection was
            made with another model.

    Example:
        >>> import numpy as np
        >>> from mmaselect.look import look_at
        >>> photo = np.zeros((40, 48, 3), np.uint8)
        >>> look = look_at(photo, 'mmaselect://dit_cifar10', timesteps=[0, 100], progress=False)
        >>> look.colors[100, (3, 'query')].shape
        (1, 32, 32, 3)
    """
    further = [name for name in model_kwargs if name != 'condition']
    check_flat_names(further, look_at)
    seed = seed_number('seed', seed)
    position_images = whole_number('position_images', position_images, 0)
    device = pick_device(device)
    if image_size is not None:
        image_size = check_image_size('image_size', image_size)
    given = list_images(images)
    if not given:
        raise ValueError('images is empty: give at least one image')
    pictures = [to_array(image, f'image {place}') for place, image in enumerate(given)]
    if isinstance(model, FrozenDiT):
        check_not_loaded(dict(blocks=blocks, feature=feature, dtype=dtype, **model_kwargs))
        dit = model
    else:
        dit = FrozenDiT.from_pretrained(
            model,
            blocks=blocks,
            feature=feature,
            dtype=dtype,
            check=lambda process: parse_timesteps(timesteps, process.num_train_timesteps),
            **model_kwargs,
        ).follow(device)
    size = image_size or look_size(dit)
    steps = set(parse_timesteps(timesteps, dit.num_train_timesteps))
    if selection is not None:
        check_result_model(selection, dit)
        steps.add(dit.process.check_timestep(selection.timestep))
    ordered = sorted(steps)
    seen = np.stack([resize_and_crop(picture, size) for picture in pictures])
    # Few images share more than positions, say a sky above: images of nothing serve in their place.
    extra = position_images if len(seen) < position_images else 0
    read = seen
    if extra:
        read = np.concatenate([seen, colored_noise(extra, seen.shape[1:3], seed)])
    keys = dit.keys if keys is None else tuple(keys)
    found, inputs = _read(dit, read, ordered, keys, seed, batch_size, progress, len(seen))
    maps = {where: values[: len(seen)] for where, values in found.items()}
    positions = {}
    if position_images:
        positions = {
            where: position_map(values[-position_images:]) for where, values in found.items()
        }
    height, width = seen.shape[1:3]
    tokens = -(-height // dit.stride) * -(-width // dit.stride)
    look = Look(
        model=name or (dit.family.title if isinstance(model, FrozenDiT) else str(model)),
        images=seen,
        names=tuple(_name(image, place) for place, image in enumerate(given)),
        stride=dit.stride,
        timesteps=tuple(ordered),
        noise_levels=tuple(float(dit.process.at(step, tokens).sigma) for step in ordered),
        keys=keys,
        maps=maps,
        colors=_colors(maps, ordered, keys),
        positions=positions,
        content_colors={},
        inputs=inputs,
        num_train_timesteps=dit.num_train_timesteps,
        selection=selection,
    )
    if not positions:
        return look
    content = {where: look.content(*where) for where in maps}
    return replace(look, content_colors=_colors(content, ordered, keys))


def _name(image: Any, place: int) -> str:
    return Path(image).name if isinstance(image, (str, Path)) else f'image {place}'


def look_size(dit: FrozenDiT) -> int:
    """The model's own image size, or a larger one where that has only a few tokens."""
    own = dit.native_size
    return own if own // dit.stride >= FEW_TOKENS else 2 * FEW_TOKENS * dit.stride


def _read(
    dit: FrozenDiT,
    images: np.ndarray,
    timesteps: Sequence[int],
    keys: Sequence[TapKey],
    seed: int,
    batch_size: int,
    progress: bool,
    shown: int,
) -> tuple[dict[Cell, Tensor], dict[int, np.ndarray]]:
    """Maps of all images, and what the transformer is given for the first ones."""
    parts: dict[Cell, list[Tensor]] = {}
    given: dict[int, list[Tensor]] = {}
    pixels = to_model_range(torch.from_numpy(images).permute(0, 3, 1, 2))
    with progress_bar('images x timesteps', disable=not progress) as bar:
        task = bar.add_task('reading features', total=len(images) * len(timesteps))
        for start in range(0, len(images), batch_size):
            batch = pixels[start : start + batch_size]
            latent = dit.encode(batch.to(dit.device))
            seeds = [noise_seed(seed, start + place) for place in range(len(batch))]
            noise = draw_noise(tuple(latent.shape[1:]), seeds, latent.device)
            for step in timesteps:
                for key, value in dit.features(latent, step, noise, keys).items():
                    parts.setdefault((step, key), []).append(value.float().cpu())
                if start < shown:
                    level = dit.process.at(step, dit.num_tokens(images.shape[1:3]))
                    noisy = dit.process.add_noise(latent, noise, level)
                    given.setdefault(step, []).append(noisy.float().cpu())
                bar.advance(task, len(batch))
    maps = {where: torch.cat(found) for where, found in parts.items()}
    height, width = images.shape[1:3]
    inputs = {
        step: _seen_input(torch.cat(found)[:shown], isinstance(dit.codec, PixelCodec))[
            :, :height, :width
        ]
        for step, found in given.items()
    }
    return maps, inputs


def _seen_input(noisy: Tensor, is_pixels: bool) -> np.ndarray:
    """Noisy pixels in [-1, 1], or a noisy latent, (N, C, H, W), as colors (N, H, W, 3), uint8."""
    if not is_pixels:
        return scores_to_colors(token_scores(noisy))
    levels = ((noisy.clamp(-1, 1) + 1) * 127.5).round()
    return levels.to(torch.uint8).permute(0, 2, 3, 1).numpy()


def _colors(
    maps: dict[Cell, Tensor], timesteps: Sequence[int], keys: Sequence[TapKey]
) -> dict[Cell, np.ndarray]:
    colors = {}
    for key in keys:
        before = None
        for step in timesteps:
            scores = token_scores(maps[step, key])
            before = scores if before is None else turned_to(scores, before)
            colors[step, key] = scores_to_colors(before)
    return colors
