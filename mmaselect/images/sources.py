# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Where images come from: a folder, or arrays in memory."""

from __future__ import annotations

import logging
import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import numpy as np
from PIL import Image

from mmaselect.checks import check_path, is_sequence, is_whole_number, shorten
from mmaselect.images.reading import as_rgb, load_rgb
from mmaselect.registry import PLUGINS

logger = logging.getLogger(__name__)

#: Channel orders of images in memory.
ARRAY_ORDERS = ('rgb', 'bgr')
#: What image files are told by.
IMAGE_SUFFIXES = ('.bmp', '.jpeg', '.jpg', '.pgm', '.png', '.ppm', '.tif', '.tiff', '.webp')


def find_image_files(folder: Path) -> list[Path]:
    """All image files below a folder, in the order of their paths.

    Links are followed. Hidden files and folders are left out (``._x.jpg``, ``.ipynb_checkpoints``),
    as are files of other suffixes, links into nothing and what is not a regular file; a line of the
    log says how many.

    Args:
        folder: Searched recursively.

    Raises:
        OSError: If a sub-folder cannot be read; the message names it.
    """
    files: list[Path] = []
    skipped: Counter[str] = Counter()
    _search(folder, frozenset(), files, skipped)
    if skipped:
        reasons = ', '.join(f'{count} {reason}' for reason, count in sorted(skipped.items()))
        logger.warning(
            'image folder %r: %d images; skipped %d: %s',
            str(folder),
            len(files),
            skipped.total(),
            reasons,
        )
    return sorted(files)


def _search(
    folder: Path, above: frozenset[tuple[int, int]], files: list[Path], skipped: Counter[str]
) -> None:
    """Add the image files below a folder.

    Args:
        folder: Where to look.
        above: (device, inode) of the folders that led here.
        files: Gets the files.
        skipped: Gets what was left out, and why.
    """
    try:
        status = folder.stat()
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise type(error)(
            error.errno,
            f'{error.strerror}: the folder of images cannot be read. Make it readable, or move it '
            f'elsewhere: no image is skipped silently',
            str(folder),
        ) from error
    identity = (status.st_dev, status.st_ino)
    if identity in above:
        skipped['links to a folder that they lie in'] += 1
        return
    for entry in entries:
        path = folder / entry.name
        if entry.name.startswith('.'):
            skipped['hidden'] += 1
        elif entry.is_dir():
            _search(path, above | {identity}, files, skipped)
        elif path.suffix.lower() not in IMAGE_SUFFIXES:
            skipped['of other suffixes'] += 1
        elif entry.is_file():
            files.append(path)
        elif not path.exists():
            skipped['links into nothing'] += 1
        else:
            skipped['pipes, sockets or devices'] += 1


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
        folder: Searched recursively, see :func:`find_image_files`; the suffixes are those of
            ``IMAGE_SUFFIXES``. Several folders give their images one after the other.

    Attributes:
        folder (Path): The folder; the first of several.
        folders (list[Path]): All of them.
        paths (list[Path]): The files.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If it holds no image.
    """

    def __init__(self, folder: str | Path | Sequence[str | Path]) -> None:
        several = folder if is_sequence(folder) else [folder]
        if len(several) == 0:
            raise ValueError('the list of image folders is empty: give at least one folder')
        self.folders = [Path(check_path('image folder', one)).expanduser() for one in several]
        self.folder = self.folders[0]
        self.paths: list[Path] = []
        for one in self.folders:
            if not one.is_dir():
                raise FileNotFoundError(
                    f'image folder {str(one)!r} does not exist. Give a folder of images, a list of '
                    f'folders, or the config of a registered dataset'
                )
            found = find_image_files(one)
            if not found:
                raise ValueError(
                    f'image folder {str(one)!r} holds no images ({", ".join(IMAGE_SUFFIXES)}): '
                    f'at least one is needed'
                )
            self.paths += found

    def __len__(self) -> int:
        return len(self.paths)

    def load(self, index: int) -> np.ndarray:
        return load_rgb(self.paths[index])

    def name(self, index: int) -> str:
        return str(self.paths[index])


class ImageArrays(ImageSource):
    """Images that are in memory already.

    Args:
        images: What :func:`~mmaselect.images.reading.as_rgb` takes: (H, W, 3) uint8 RGB arrays,
            grey ones, PIL images.
        labels: One class label per image, for label-aware criteria.
    """

    def __init__(
        self,
        images: Sequence[np.ndarray | Image.Image] | np.ndarray,
        labels: Sequence[int] | None = None,
    ) -> None:
        if len(images) == 0:
            raise ValueError('the calibration set is empty: timestep selection needs images')
        if isinstance(images, np.ndarray) and images.ndim == 3 and images.shape[-1] in (1, 3, 4):
            raise ValueError(
                f'images is one image, {images.shape}: give a list of images, or an array '
                f'(number, height, width, 3)'
            )
        if labels is not None and (
            not is_sequence(labels)
            or len(labels) != len(images)
            or not all(is_whole_number(label) for label in labels)
        ):
            raise ValueError(
                f'labels must be a whole number for each of the {len(images)} images, got '
                f'{shorten(labels)}'
            )
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


def build_image_source(
    calibration: str | Path | Sequence[str | Path] | Mapping[str, Any] | ImageSource | Any | None,
    array_order: str = 'rgb',
) -> ImageSource:
    """An image source from a config's ``calibration``.

    Args:
        calibration: A folder of images or a list of folders, a source that is built already, or,
            where OpenMMLab is installed, a registered dataset or its config.
        array_order: Channel order of datasets in memory, ``'rgb'`` or ``'bgr'``.

    Raises:
        ImportError: If a dataset's config is given without OpenMMLab.
        ValueError: If there is nothing to calibrate on.
    """
    if calibration is None:
        raise ValueError(
            "timestep='auto' needs calibration images: set calibration to the config of a dataset "
            '(usually the training set) or to a folder of images; or set timestep to a number'
        )
    if isinstance(calibration, ImageSource):
        return calibration
    if isinstance(calibration, (str, Path)):
        return ImageFolder(calibration)
    if is_sequence(calibration) and all(isinstance(one, (str, Path)) for one in calibration):
        return ImageFolder(calibration)
    if 'dataset images' not in PLUGINS:
        if isinstance(calibration, Mapping) and 'type' in calibration:
            raise ImportError(
                f'calibration={shorten(calibration)} is the config of a dataset, and MMEngine, '
                f'which builds datasets, is not installed: give a folder of images instead'
            )
        raise ValueError(not_calibration(calibration))
    return resolve_name(PLUGINS['dataset images'])(calibration, array_order)


def not_calibration(calibration: object) -> str:
    """The message for a ``calibration`` that cannot be one."""
    return (
        f"calibration must be a folder of images, a list of folders, or a dataset's config with "
        f"its 'type'; got {shorten(calibration)}"
    )
