# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""From a file to pixels, from pixels to one size, and to what a model takes."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor


class UnreadableImageError(ValueError):
    """An image file that is missing or cannot be decoded.

    Args:
        path: The file.
        reason: What the reader said.
    """

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(
            f'image {str(path)!r} cannot be read ({reason}). Remove or replace it: no image is '
            f'skipped silently'
        )
        self.path = path
        self.reason = reason


def load_rgb(path: str | Path, read: Callable[[str | Path], bytes] | None = None) -> np.ndarray:
    """An image file as (H, W, 3) uint8, RGB.

    Args:
        path: The file.
        read: What gives the file's bytes, where it is not on this machine's disk.

    Raises:
        UnreadableImageError: If the file is missing or cannot be decoded; the message names it.
    """
    try:
        with Image.open(path if read is None else io.BytesIO(read(path))) as image:
            return np.asarray(image.convert('RGB'))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UnreadableImageError(path, str(error)) from error


def as_rgb(image: np.ndarray | Image.Image, name: str = 'image') -> np.ndarray:
    """An image in memory as (H, W, 3) uint8, RGB.

    Args:
        image: Such an array already, or a PIL image of any mode.
        name: How the message calls it.

    Raises:
        ValueError: If an array has another shape or dtype.
    """
    if isinstance(image, Image.Image):
        return np.asarray(image.convert('RGB'))
    if image.ndim != 3 or image.shape[-1] != 3 or image.dtype != np.uint8:
        raise ValueError(
            f'{name}: expected (H, W, 3) uint8 RGB, got {tuple(image.shape)} {image.dtype}'
        )
    return image


def resize_and_crop(
    image: np.ndarray,
    size: int | tuple[int, int],
    resample: Image.Resampling = Image.Resampling.BICUBIC,
) -> np.ndarray:
    """Scale until the image covers ``size``, then cut its center.

    Args:
        image: (H, W, 3) or (H, W), uint8.
        size: Side of a square, or (height, width), in pixels.
        resample: How to interpolate; label maps want ``Image.Resampling.NEAREST``.

    Returns:
        ndarray: (height, width, 3) or (height, width), uint8; the image itself if it has that size.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if image.shape[:2] == (height, width):
        return image
    scale = max(height / image.shape[0], width / image.shape[1])
    scaled = (max(width, round(image.shape[1] * scale)), max(height, round(image.shape[0] * scale)))
    resized = Image.fromarray(image).resize(scaled, resample)
    left, top = (scaled[0] - width) // 2, (scaled[1] - height) // 2
    return np.asarray(resized.crop((left, top, left + width, top + height)))


def to_model_range(images: Tensor) -> Tensor:
    """Scale uint8 pixels to [-1, 1], float32."""
    return images.float() / 127.5 - 1
