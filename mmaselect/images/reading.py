# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""From a file to pixels, from pixels to one size, and to what a model takes."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image
from torch import Tensor

from mmaselect.checks import shorten
from mmaselect.logs import logger

#: What transparent images are laid on, RGB: about the mean color of photographs (ImageNet's), which
#: makes edges neither with light objects nor with dark ones. MMCV's choice for grey images.
CANVAS = (124, 117, 104)
#: What makes an image upright, by the orientation that EXIF states.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


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

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, self.reason)  # it travels from the workers of a loader


@contextmanager
def naming_image(path: str | Path) -> Iterator[None]:
    """Any error of what reads an image carries the name of its file.

    Args:
        path: The file.

    Raises:
        UnreadableImageError: In place of any other error.
    """
    try:
        yield
    except UnreadableImageError:
        raise
    except Image.DecompressionBombError as error:
        raise UnreadableImageError(
            path, f'{error}; if it is what it should be, raise PIL.Image.MAX_IMAGE_PIXELS'
        ) from error
    except Exception as error:  # decoders raise whatever a damaged file leads them to
        is_told = isinstance(error, (OSError, SyntaxError, ValueError)) and str(error)
        kind = '' if is_told else f'{type(error).__name__}: '
        raise UnreadableImageError(path, f'{kind}{error}') from error


@contextmanager
def open_image(path: str | Path) -> Iterator[Image.Image]:
    """A file as a PIL image, until the block ends; for what :func:`load_rgb` does not give.

    Args:
        path: The file.

    Raises:
        UnreadableImageError: If the file cannot be read, or the block raises.
    """
    with naming_image(path), Image.open(path) as image:
        yield image


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
    with naming_image(path):
        # A pipe would be waited for, without end.
        if read is None and Path(path).exists() and not Path(path).is_file():
            kind = 'a folder' if Path(path).is_dir() else 'a pipe, a socket or a device'
            raise OSError(f'it is {kind} and no regular file')
        with Image.open(path if read is None else io.BytesIO(read(path))) as image:
            return _rgb_of(image, str(path))


def _upright(image: Image.Image, name: str) -> Image.Image:
    """An image turned as EXIF states. No entry but the orientation is read."""
    image.load()  # turns a TIFF by itself
    try:
        orientation: Any = image.getexif().get(ExifTags.Base.Orientation)
    except Exception as error:  # the parser raises whatever a malformed block leads it to
        logger.warning(
            'image %r is read as it is stored: its EXIF data are malformed (%s: %s), so that no '
            'orientation is known',
            name,
            type(error).__name__,
            error,
        )
        return image
    turn = _TURNS.get(orientation) if isinstance(orientation, int) else None
    return image if turn is None else image.transpose(turn)


def _rgb_of(image: Image.Image, name: str) -> np.ndarray:
    """A PIL image of any mode as (H, W, 3) uint8, RGB, upright; messages call it by the name.

    Raises:
        ValueError: If its values have no range that is known.
    """
    # Netpbm's 16-bit grey comes in 32 bits, scaled to 16.
    wide = image.mode.startswith('I;16') or (image.mode == 'I' and image.format == 'PPM')
    image = _upright(image, name)
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
            return _rgb_of(image, name)
        except Exception as error:  # as of a file: of any kind
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
