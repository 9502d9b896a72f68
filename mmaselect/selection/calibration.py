# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Calibration images: where they come from, which of them, and at what size."""

from __future__ import annotations

import hashlib
import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

IMAGE_SUFFIXES = ('.bmp', '.jpeg', '.jpg', '.png', '.ppm', '.tif', '.tiff', '.webp')


@dataclass(frozen=True)
class CalibrationBatch:
    """Some calibration images.

    Attributes:
        images: (B, 3, H, W), RGB in [-1, 1].
        indices: Position of each image in the calibration set; its noise depends on it.
        labels: (B,) class labels, or (B, H, W) label maps, where the source has them.
    """

    images: Tensor
    indices: list[int]
    labels: Tensor | None = None


class ImageSource(ABC):
    """Images by index. Subclasses say how to load one."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of images."""

    @abstractmethod
    def load(self, index: int) -> np.ndarray:
        """Image as (H, W, 3) uint8, RGB."""

    @abstractmethod
    def name(self, index: int) -> str:
        """How messages call the image: its path, usually."""

    def label(self, index: int) -> int | None:
        """Class label, where there is one; only label-aware criteria read it."""
        return None


class ImageFolder(ImageSource):
    """All images below a folder, in the order of their paths.

    Args:
        folder: Searched recursively; the suffixes are those of ``IMAGE_SUFFIXES``.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If it holds no image.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser()
        if not self.folder.is_dir():
            raise FileNotFoundError(
                f'calibration folder {str(folder)!r} does not exist. Give a folder of images, or '
                f'the config of a registered dataset'
            )
        self.paths = sorted(
            path for path in self.folder.rglob('*') if path.suffix.lower() in IMAGE_SUFFIXES
        )
        if not self.paths:
            raise ValueError(
                f'calibration folder {str(folder)!r} holds no images '
                f'({", ".join(IMAGE_SUFFIXES)}): timestep selection needs at least one'
            )

    def __len__(self) -> int:
        return len(self.paths)

    def load(self, index: int) -> np.ndarray:
        return load_rgb(self.paths[index])

    def name(self, index: int) -> str:
        return str(self.paths[index])


class ImageArrays(ImageSource):
    """Images that are in memory already.

    Args:
        images: Each (H, W, 3) uint8 RGB, or a PIL image.
        labels: One class label per image, for label-aware criteria.
    """

    def __init__(
        self, images: Sequence[np.ndarray | Image.Image], labels: Sequence[int] | None = None
    ) -> None:
        if len(images) == 0:
            raise ValueError('the calibration set is empty: timestep selection needs images')
        self.images = images
        self.labels = labels

    def __len__(self) -> int:
        return len(self.images)

    def load(self, index: int) -> np.ndarray:
        image = self.images[index]
        if isinstance(image, Image.Image):
            image = np.asarray(image.convert('RGB'))
        if image.ndim != 3 or image.shape[-1] != 3 or image.dtype != np.uint8:
            raise ValueError(
                f'image {index}: expected (H, W, 3) uint8 RGB, got {image.shape} {image.dtype}'
            )
        return image

    def name(self, index: int) -> str:
        return f'image {index}'

    def label(self, index: int) -> int | None:
        return None if self.labels is None else int(self.labels[index])


def load_rgb(path: str | Path, read: Callable[[str | Path], bytes] | None = None) -> np.ndarray:
    """An image file as (H, W, 3) uint8, RGB.

    Args:
        path: The file.
        read: What gives the file's bytes, where it is not on this machine's disk.

    Raises:
        ValueError: If the file is missing or cannot be decoded; the message names it.
    """
    try:
        with Image.open(path if read is None else io.BytesIO(read(path))) as image:
            return np.asarray(image.convert('RGB'))
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(
            f'calibration image {str(path)!r} cannot be read ({error}). Remove or replace it: '
            f'timestep selection skips no image silently'
        ) from error


def resize_and_crop(image: np.ndarray, size: int | tuple[int, int]) -> np.ndarray:
    """Scale until the image covers ``size``, then cut its centre.

    Args:
        image: (H, W, 3) uint8.
        size: Side of a square, or (height, width), in pixels.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if image.shape[:2] == (height, width):
        return image
    scale = max(height / image.shape[0], width / image.shape[1])
    scaled = (max(width, round(image.shape[1] * scale)), max(height, round(image.shape[0] * scale)))
    resized = Image.fromarray(image).resize(scaled, Image.Resampling.BICUBIC)
    left, top = (scaled[0] - width) // 2, (scaled[1] - height) // 2
    return np.asarray(resized.crop((left, top, left + width, top + height)))


class CalibrationSet:
    """A fixed, seeded choice of images from a source, all at one size.

    Args:
        source: Where the images come from.
        image_size: Side of the square that each image is scaled and cropped to, or
            (height, width), in pixels.
        num_images: How many to use; all of them if the source has fewer.
        seed: Of the choice.

    Raises:
        ValueError: If the source is empty or ``num_images`` is not positive.
    """

    def __init__(
        self,
        source: ImageSource,
        image_size: int | tuple[int, int],
        num_images: int = 128,
        seed: int = 0,
    ) -> None:
        if len(source) == 0:
            raise ValueError('the calibration set is empty: timestep selection needs images')
        if num_images < 1:
            raise ValueError(f'num_images must be at least 1, got {num_images}')
        self.source = source
        self.image_size = image_size
        order = np.random.default_rng(seed).permutation(len(source))
        self.chosen = sorted(int(i) for i in order[:num_images])

    def __len__(self) -> int:
        return len(self.chosen)

    @property
    def labels_available(self) -> bool:
        return self.source.label(self.chosen[0]) is not None

    def image(self, position: int) -> np.ndarray:
        """Image at a position of this set, (H, W, 3) uint8 RGB at the set's size."""
        return resize_and_crop(self.source.load(self.chosen[position]), self.image_size)

    def batches(
        self, batch_size: int, rank: int = 0, world_size: int = 1
    ) -> Iterator[CalibrationBatch]:
        """This rank's share, a batch at a time; memory does not grow with the number of images."""
        positions = list(range(rank, len(self), world_size))
        for start in range(0, len(positions), batch_size):
            part = positions[start : start + batch_size]
            pixels = np.stack([self.image(position) for position in part])
            images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
            labels = [self.source.label(self.chosen[position]) for position in part]
            yield CalibrationBatch(
                images, part, None if None in labels else torch.tensor(labels, dtype=torch.long)
            )

    def fingerprint(self) -> str:
        """Hash of the pixels of every image in the set, so that a stored result can be trusted."""
        digest = hashlib.sha256(str(self.image_size).encode())
        for position in range(len(self)):
            image = self.source.load(self.chosen[position])
            digest.update(f'{image.shape}'.encode())
            digest.update(image.tobytes())
        return digest.hexdigest()
