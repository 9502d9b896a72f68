# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Where images come from: a folder, or arrays in memory."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from mmaselect.images.reading import as_rgb, load_rgb

IMAGE_SUFFIXES = ('.bmp', '.jpeg', '.jpg', '.png', '.ppm', '.tif', '.tiff', '.webp')


def find_image_files(folder: Path) -> list[Path]:
    """All image files below a folder, in the order of their paths."""
    return sorted(
        path
        for path in folder.rglob('*')
        if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()
    )


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
                f'image folder {str(folder)!r} does not exist. Give a folder of images, or the '
                f'config of a registered dataset'
            )
        self.paths = find_image_files(self.folder)
        if not self.paths:
            raise ValueError(
                f'image folder {str(folder)!r} holds no images ({", ".join(IMAGE_SUFFIXES)}): '
                f'at least one is needed'
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
        return as_rgb(self.images[index], self.name(index))

    def name(self, index: int) -> str:
        return f'image {index}'

    def label(self, index: int) -> int | None:
        return None if self.labels is None else int(self.labels[index])
