# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""From a file to pixels, from pixels to one size, and to what a model takes."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor

from mmaselect.checks import shorten

#: What transparent images are laid on, RGB: about the mean color of photographs (ImageNet's), which
#: makes edges neither with light objects nor with dark ones. MMCV's choice for grey images.
CANVAS = (124, 117, 104)


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
    """An image file as (H, W, 3) uint8, RGB: the pixels of ``mmcv.imread``, where it is right.

    - The orientation that EXIF states is applied.
    - 16 bits a channel become 8 by their upper byte (color TIFF and PPM differ by 1 at most from
      what MMCV reads); 32-bit and float images, whose range no file
      states, are refused.
    - Transparent images are laid on ``CANVAS``, as ``mmcv.imread(backend='pillow')`` does with grey
      ones; its other backend shows the colors that transparency hides.

    Args:
        path: The file.
        read: What gives the file's bytes, where it is not on this machine's disk.

    Raises:
        UnreadableImageError: If the file is missing or cannot be decoded; the message names it.
    """
    try:
        # A pipe would be waited for, without end.
        if read is None and Path(path).exists() and not Path(path).is_file():
            kind = 'a folder' if Path(path).is_dir() else 'a pipe, a socket or a device'
            raise OSError(f'it is {kind} and no regular file')
        with Image.open(path if read is None else io.BytesIO(read(path))) as image:
            return _rgb_of(image)
    except Image.DecompressionBombError as error:
        raise UnreadableImageError(
            path, f'{error}; if it is what it should be, raise PIL.Image.MAX_IMAGE_PIXELS'
        ) from error
    except (OSError, SyntaxError, ValueError) as error:
        raise UnreadableImageError(path, str(error)) from error


def _rgb_of(image: Image.Image) -> np.ndarray:
    """A PIL image of any mode as (H, W, 3) uint8, RGB, upright.

    Raises:
        ValueError: If its values have no range that is known.
    """
    # Netpbm's 16-bit grey comes in 32 bits, scaled to 16.
    wide = image.mode.startswith('I;16') or (image.mode == 'I' and image.format == 'PPM')
    image = ImageOps.exif_transpose(image)
    if wide:
        return as_rgb(np.asarray(image).astype(np.uint16))
    if image.mode in ('I', 'F'):
        kind = 'whole' if image.mode == 'I' else 'floating-point'
        raise ValueError(
            f'its pixels are 32-bit {kind} numbers, whose range is not known: save it with 8 or 16 '
            f'bits a channel'
        )
    if image.mode in ('LA', 'La', 'PA', 'RGBA', 'RGBa') or 'transparency' in image.info:
        return as_rgb(np.asarray(image.convert('RGBA')))
    return np.asarray(image.convert('RGB'))


def as_rgb(
    image: np.ndarray | Image.Image, name: str = 'image', array_order: str = 'rgb'
) -> np.ndarray:
    """An image in memory as (H, W, 3) uint8, RGB.

    Args:
        image: A PIL image of any mode, or an array: (H, W, 3), (H, W, 4) with transparency, which
            is laid on ``CANVAS``, or (H, W) or (H, W, 1), grey; uint8, or uint16, of which the
            upper byte is taken.
        name: How the message calls it.
        array_order: Order of an array's colors, ``'rgb'`` or ``'bgr'``.

    Raises:
        ValueError: If it is anything else.
    """
    if isinstance(image, Image.Image):
        try:
            return _rgb_of(image)
        except (OSError, ValueError) as error:
            raise ValueError(f'{name}: {error}') from error
    if not isinstance(image, np.ndarray):
        raise ValueError(
            f'{name}: expected an (H, W, 3) uint8 RGB array or a PIL image, got {shorten(image)}'
        )
    got = f'expected (H, W, 3) uint8 RGB, got {tuple(image.shape)} {image.dtype}'
    if image.dtype not in (np.uint8, np.uint16):
        raise ValueError(f'{name}: {got}: scale its values to 0 to 255, and convert them to uint8')
    if image.ndim == 2:
        image = image[..., None]
    if image.ndim != 3 or image.size == 0 or image.shape[-1] not in (1, 3, 4):
        more = ''
        if image.ndim == 3 and image.shape[0] in (1, 3, 4) and min(image.shape[1:]) > 4:
            more = ': the channels come last, so transpose it by (1, 2, 0)'
        elif image.ndim == 3 and image.shape[-1] > 4:
            more = (
                f': the frozen model sees RGB, not {image.shape[-1]} channels. Load those three '
                f'that show red, green and blue (or whatever stands for them); or give a list of '
                f'{image.shape[0]} arrays, if these are grey images'
            )
        raise ValueError(f'{name}: {got}{more}')
    if image.dtype == np.uint16:
        image = (image >> 8).astype(np.uint8)
    channels = image.shape[-1]
    if channels == 1:
        return np.repeat(image, 3, axis=-1)
    colors = image[..., :3]
    if array_order == 'bgr':
        colors = np.ascontiguousarray(colors[..., ::-1])
    if channels == 3:
        return colors
    alpha = image[..., 3:].astype(np.float32) / 255
    laid = colors * alpha + np.array(CANVAS, np.float32) * (1 - alpha)
    return np.rint(laid).astype(np.uint8)


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
