# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Images as a user may have them: files, bytes, PIL images, arrays, tensors, or many of them."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from mmaselect.checks import check_path, is_number, is_sequence, shorten
from mmaselect.images.reading import (
    UnreadableImageError,
    as_rgb,
    load_rgb,
    resize_and_crop,
    to_model_range,
)
from mmaselect.images.sources import ImageArrays, ImageFolder

#: One image, in any form.
ImageLike = str | Path | bytes | bytearray | np.ndarray | Image.Image | Tensor
#: What interpolation may add at either end of [-1, 1].
OVERSHOOT = 0.5


def list_images(images: Any) -> list[ImageLike]:
    """Single images out of one image, a folder, a batch, or a list of any of them.

    Args:
        images: A path of a file or of a folder (its images, in the order of their paths), the bytes
            of a file, a PIL image, an array (H, W), (H, W, C) or (N, H, W, C), a tensor (3, H, W)
            or (N, 3, H, W), or a sequence of these.

    Raises:
        FileNotFoundError: If a path leads nowhere.
        ValueError: If there is no image.
    """
    if isinstance(images, (str, Path)):
        path = Path(check_path('image', images)).expanduser()
        if path.is_dir():
            return list(ImageFolder(path).paths)
        if not path.exists():
            raise FileNotFoundError(
                f'there is no image {str(images)!r} (from {str(Path.cwd())!r}): give the path of a '
                f'file or of a folder of images'
            )
        return [path]
    if isinstance(images, np.ndarray) and images.dtype.kind in 'OUS':
        return list_images(images.ravel().tolist())
    if isinstance(images, (np.ndarray, Tensor)):
        return list(images) if images.ndim == 4 else [images]
    if isinstance(images, (bytes, bytearray, Image.Image)):
        return [images]
    if is_sequence(images):
        found: list[ImageLike] = []
        for index, one in enumerate(images):
            try:
                found += list_images(one)
            except ValueError as error:
                raise ValueError(f'image {index}: {error}') from None
        return found
    raise ValueError(
        f'an image must be a path, bytes of a file, a PIL image, an array or a tensor; got '
        f'{shorten(images)}'
    )


def looks_like_unit_range(images: Sequence[Tensor]) -> bool:
    """Whether pixels that should be [-1, 1] are all in its upper half, as images from 0 to 1 are.

    Args:
        images: Tensors of floats. Empty ones, and those of one value throughout, tell nothing.
    """
    spans = [(one.amin().item(), one.amax().item()) for one in images if one.numel()]
    told = [(low, high) for low, high in spans if low < high]
    return bool(told) and all(low >= 0 and high <= 1 for low, high in spans)


def warn_of_unit_range(images: Sequence[Any]) -> None:
    """Warn where all tensors of floats among some images look like images from 0 to 1."""
    floats = [one for one in images if isinstance(one, Tensor) and one.is_floating_point()]
    if looks_like_unit_range(floats):
        warnings.warn(
            'tensors of floats are read as [-1, 1], and all pixels of these are from 0 to 1, as '
            'torchvision makes them. If that is their range, say value_range=(0, 1); if it is not, '
            'value_range=(-1, 1)',
            stacklevel=4,
        )


def check_value_range(value_range: Any) -> tuple[float, float] | None:
    """The range of tensors of floats, or None.

    Raises:
        ValueError: If it is not a pair of numbers in ascending order.
    """
    if value_range is None:
        return None
    pair = list(value_range) if is_sequence(value_range) else []
    if len(pair) != 2 or not all(is_number(end) for end in pair):
        raise ValueError(
            f'value_range must be two numbers, such as (0, 1), (-1, 1) or (0, 255); got '
            f'{shorten(value_range)}'
        )
    low, high = (float(end) for end in pair)
    if low >= high:
        raise ValueError(f'value_range must ascend, got {shorten(value_range)}')
    return low, high


def to_array(
    image: ImageLike, name: str = 'image', value_range: tuple[float, float] | None = None
) -> np.ndarray:
    """An image as (H, W, 3) uint8, RGB.

    Args:
        image: One of what :func:`list_images` gives. Arrays of floats have 0 to 1, as
            scikit-image's, tensors of floats -1 to 1.
        name: How a message calls it.
        value_range: What tensors of floats have instead.

    Raises:
        ValueError: If it cannot be read, or its range is another.
    """
    if isinstance(image, Tensor):
        scaled = to_pixels(image, name, value_range=value_range) + 1
        return (scaled * 127.5).round().clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy()
    if isinstance(image, (str, Path)):
        return load_rgb(image)
    if isinstance(image, (bytes, bytearray)):
        data = bytes(image)
        try:
            return load_rgb('given as bytes', lambda _: data)
        except UnreadableImageError as error:
            raise ValueError(f'{name}: {error.reason}') from error
    pixels: Any = image
    if isinstance(image, np.ndarray) and image.dtype.kind == 'f':
        low, high = (image.min(), image.max()) if image.size else (0, 1)
        if not (low >= 0 and high <= 1):
            raise ValueError(
                f'{name}: an array of floats must have 0 to 1, got {low:.3g} to {high:.3g}: scale '
                f'it, or convert it to uint8'
            )
        pixels = np.rint(image * 255).astype(np.uint8)
    return as_rgb(pixels, name)


def to_pixels(
    image: ImageLike,
    name: str = 'image',
    size: int | tuple[int, int] | None = None,
    value_range: tuple[float, float] | None = None,
) -> Tensor:
    """An image as (3, H, W), float32, RGB in [-1, 1].

    Args:
        image: See :func:`to_array`; a tensor may be uint8 as well, 0 to 255.
        name: How a message calls it.
        size: Side, or (height, width), that it is scaled and cropped to; its own if None.
        value_range: What a tensor of floats has, such as (0, 1); (-1, 1) if None.

    Raises:
        ValueError: If it cannot be read, or its range is another.
    """
    if not isinstance(image, Tensor):
        array = to_array(image, name)
        array = array if size is None else resize_and_crop(array, size)
        # A copy: arrays of PIL images are read-only, which torch warns of.
        return to_model_range(torch.from_numpy(array.copy()).permute(2, 0, 1))
    is_bytes = image.dtype == torch.uint8
    is_image = image.ndim == 3 and image.shape[0] in (1, 3)
    if not is_image or not (is_bytes or image.is_floating_point()):
        raise ValueError(
            f'{name}: a tensor must be (3, H, W) or (N, 3, H, W), RGB, or (1, H, W), grey; float '
            f'in [-1, 1] or uint8; got {tuple(image.shape)} {image.dtype}'
        )
    if image.shape[0] == 1:
        image = image.expand(3, -1, -1)
    low, high = (-1.0, 1.0) if value_range is None else value_range
    pixels = to_model_range(image) if is_bytes else image.float()
    if not is_bytes and (low, high) != (-1, 1):
        pixels = (pixels - low) / (high - low) * 2 - 1
    limit = 1 + OVERSHOOT
    if pixels.numel() and not pixels.abs().amax() <= limit:
        raise ValueError(
            f'{name}: a tensor of floats must have {low:g} to {high:g}, got {image.amin():.3g} to '
            f'{image.amax():.3g}: undo its normalization, say its value_range, such as (0, 1) or '
            f'(0, 255), or give uint8'
        )
    if size is None or tuple(pixels.shape[1:]) == _both(size):
        return pixels
    height, width = _both(size)
    scale = max(height / pixels.shape[1], width / pixels.shape[2])
    scaled = [
        max(height, round(pixels.shape[1] * scale)),
        max(width, round(pixels.shape[2] * scale)),
    ]
    pixels = transforms.resize(pixels, scaled, transforms.InterpolationMode.BICUBIC)
    return transforms.center_crop(pixels, [height, width])


class ImageList(ImageArrays):
    """Images in any form as a source: each is read when it is asked for.

    Args:
        images: What :func:`list_images` takes.
        labels: One class label per image, for label-aware criteria.
        value_range: What tensors of floats have, such as (0, 1); (-1, 1) if None.

    Raises:
        FileNotFoundError: If a path leads nowhere.
        ValueError: If there is no image, or labels do not fit them.
    """

    def __init__(
        self,
        images: Any,
        labels: Sequence[int] | None = None,
        value_range: tuple[float, float] | None = None,
    ) -> None:
        # An array may be one image by mistake, which `ImageArrays` says.
        is_array = isinstance(images, np.ndarray) and images.dtype.kind not in 'OUS'
        listed: Any = images if is_array else list_images(images)
        super().__init__(listed, labels)
        self.value_range = value_range
        if value_range is None:
            warn_of_unit_range(listed)

    def load(self, index: int) -> np.ndarray:
        return to_array(self.images[index], self.name(index), self.value_range)

    def name(self, index: int) -> str:
        image = self.images[index]
        return str(image) if isinstance(image, (str, Path)) else super().name(index)


def stack_pixels(images: Iterable[Tensor]) -> Tensor:
    """Images as one batch.

    Raises:
        ValueError: If their sizes differ.
    """
    batch = list(images)
    sizes = {tuple(image.shape[1:]) for image in batch}
    if len(sizes) != 1:
        raise ValueError(
            f'images of one call must have one size, got {sorted(sizes)}: set image_size, which '
            f'scales and crops them, or call once for each size'
        )
    return torch.stack(batch)


def _both(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])
