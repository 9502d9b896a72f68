# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Where images come from: folders and other paths, or arrays in memory."""

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
#: What images are given as, for messages.
IMAGE_KINDS = (
    "a folder of images, image files (a list, or 'photos/*.jpg'), a .txt file with the path of an "
    'image on each line, .zip, .tar or .parquet files, or a data set of Hugging Face'
)
#: Kind of the files of a suffix.
KINDS_OF_SUFFIX = {
    **dict.fromkeys(IMAGE_SUFFIXES, 'image'),
    **dict.fromkeys(('.lst', '.txt'), 'list'),
    **{f'.{kind}': kind for kind in ('parquet', 'tar', 'zip')},
}


def has_pattern(path: str) -> bool:
    """Whether a path has ``*``, ``?`` or ``[``, and so may stand for several."""
    return any(letter in path for letter in '*?[')


def is_hugging_face(images: Any) -> bool:
    """Whether images are a data set of the package ``datasets``."""
    return hasattr(images, 'cast_column') and hasattr(images, 'features')


def path_kind(path: str) -> str:
    """What a path of images leads to: ``'folder'``, or a kind of file by its suffix.

    Raises:
        ValueError: If it is a file of another kind.
    """
    suffix = Path(path.split('?')[0] if '://' in path else path).suffix.lower()
    if not os.path.isdir(path) and suffix in KINDS_OF_SUFFIX:
        return KINDS_OF_SUFFIX[suffix]
    if os.path.isfile(path):
        raise ValueError(
            f'{path!r} is a file of the kind {suffix or "without a suffix"!r}, from which no '
            f'images are read: give {IMAGE_KINDS}'
        )
    return 'folder'


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

    def described(self) -> str:
        """Where the images come from, for people: folders, files, or a kind of data set."""
        others = f' and {len(self) - 1} more' if len(self) > 1 else ''
        return f'{self.name(0)}{others}'


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
                wrong = 'is a file' if one.exists() else 'does not exist'
                raise FileNotFoundError(
                    f'image folder {str(one)!r} {wrong}. Give {IMAGE_KINDS}; or the config of a '
                    f'registered dataset'
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

    def described(self) -> str:
        return ', '.join(map(str, self.folders))


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

    def described(self) -> str:
        return 'images in memory'

    def label(self, index: int) -> int | None:
        return None if self.labels is None else int(self.labels[index])


def build_image_source(
    calibration: str | Path | Sequence[str | Path] | Mapping[str, Any] | ImageSource | Any | None,
    array_order: str = 'rgb',
) -> ImageSource:
    """An image source from a config's ``calibration``.

    Args:
        calibration: Paths of images, one or a list, of any kind that
            :func:`~mmaselect.images.units.image_units` takes; a data set of Hugging Face; a source
            that is built already; or, where OpenMMLab is installed, a registered dataset or its
            config.
        array_order: Channel order of datasets in memory, ``'rgb'`` or ``'bgr'``.

    Raises:
        FileNotFoundError: If a path leads nowhere.
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
    paths = _as_paths(calibration)
    if paths is not None and all(is_plain_folder(path) for path in paths):
        return ImageFolder(paths)
    if paths is not None or is_hugging_face(calibration):
        from mmaselect.images.units import UnitImages, image_units

        return UnitImages(image_units(calibration, 1))
    if 'dataset images' not in PLUGINS:
        if isinstance(calibration, Mapping) and 'type' in calibration:
            raise ImportError(
                f'calibration={shorten(calibration)} is the config of a dataset, and MMEngine, '
                f'which builds datasets, is not installed: give a folder of images instead'
            )
        raise ValueError(not_calibration(calibration))
    return resolve_name(PLUGINS['dataset images'])(calibration, array_order)


def _as_paths(calibration: Any) -> list[str] | None:
    """Paths among what a ``calibration`` may be; None if it is something else."""
    given = list(calibration) if is_sequence(calibration) else [calibration]
    if not all(isinstance(one, (str, Path)) for one in given):
        return None
    return [
        str(Path(check_path('calibration', one)).expanduser())
        if '://' not in str(one)
        else str(one)
        for one in given
    ]


def is_plain_folder(path: str) -> bool:
    """Whether a path is a folder of images, or one that does not exist."""
    if '://' in path or os.path.isfile(os.path.join(path, 'dataset_info.json')):
        return False
    return os.path.isdir(path) or not (os.path.exists(path) or has_pattern(path) or '{' in path)


def check_calibration(calibration: Any) -> str | None:
    """Check what can be a ``calibration``, without looking for images.

    Args:
        calibration: What a config has.

    Returns:
        str | None: A path that leads nowhere, if there is one: a model that gets its timestep from
        a checkpoint may be on a machine without the images.

    Raises:
        ValueError: If it is of no kind that images come from.
    """
    if calibration is None or isinstance(calibration, ImageSource) or is_hugging_face(calibration):
        return None
    if isinstance(calibration, Mapping):
        if not isinstance(calibration.get('type'), (str, type)):
            raise ValueError(not_calibration(calibration))
        return None
    paths = _as_paths(calibration)
    if paths is None:
        if hasattr(calibration, 'get_data_info') or hasattr(calibration, 'dataset'):
            return None  # a dataset that is built already, which the bridge looks at
        raise ValueError(not_calibration(calibration))
    if not paths:
        raise ValueError('calibration is an empty list: give at least one folder of images')
    for path in paths:
        is_open = '://' in path or ((has_pattern(path) or '{' in path) and not os.path.exists(path))
        if not is_open and not os.path.exists(path):
            return path
        if not is_open:
            path_kind(path)
    return None


def not_calibration(calibration: object) -> str:
    """The message for a ``calibration`` that cannot be one."""
    return (
        f"calibration must be {IMAGE_KINDS}; a list of these; or a dataset's config with its "
        f"'type'; got {shorten(calibration)}"
    )
