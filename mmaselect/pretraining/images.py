# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""A folder of images as one uint8 tensor."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import torch
from torch import Tensor

from mmaselect.files import check_regular
from mmaselect.images import (
    IMAGE_SUFFIXES,
    UnreadableImageError,
    find_image_files,
    load_rgb,
    open_image,
    resize_and_crop,
)

#: Hexadecimal digits of a hash that are kept.
DIGEST_DIGITS = 16


@dataclass(frozen=True)
class ImageSet:
    """Images of one size, all in memory.

    Attributes:
        images: (N, 3, S, S), uint8, RGB.
        labels: (N,), int64; all 0 in a folder without classes.
        classes: Class names, in the order of the labels; empty in a folder without classes.
        digests: Hash of each file by its path in the folder, in the order of the images.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    digests: dict[str, str]

    def __len__(self) -> int:
        return len(self.images)


def list_images(folder: str | Path) -> tuple[list[Path], list[int], tuple[str, ...]]:
    """Find the images of a folder, and their classes.

    Sub-folders of ``folder`` that hold images, at any depth, are the classes. Images that lie in
    ``folder`` itself make a set without classes.

    Returns:
        tuple: Files in sorted order, their labels, and the class names.

    Raises:
        FileNotFoundError: If there is no such folder, or no image in it.
        ValueError: If images lie both in ``folder`` itself and in sub-folders.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(
            f'no folder {str(folder)!r}: give a folder of images, or of one sub-folder per class'
        )
    files = find_image_files(folder)
    if not files:
        raise FileNotFoundError(
            f'no image in {str(folder)!r}: looked in all sub-folders for '
            f'{", ".join(IMAGE_SUFFIXES)}'
        )
    parts = [f.relative_to(folder).parts for f in files]
    loose = [f for f, p in zip(files, parts, strict=True) if len(p) == 1]
    if loose and len(loose) < len(files):
        raise ValueError(
            f'{str(folder)!r} mixes {len(loose)} loose images (such as {loose[0].name!r}) with '
            f'{len(files) - len(loose)} in sub-folders: put all of them into class folders, or none'
        )
    if loose:
        return files, [0] * len(files), ()
    classes = tuple(sorted({p[0] for p in parts}))
    index = {name: i for i, name in enumerate(classes)}
    return files, [index[p[0]] for p in parts], classes


def common_size(files: list[Path]) -> int:
    """Side of the images, where all are squares of one size.

    Raises:
        ValueError: If they are not; the message asks for ``--size``.
    """
    seen: dict[tuple[int, int], Path] = {}
    for file in files:
        try:
            with open_image(file) as image:
                seen.setdefault(image.size, file)
        except UnreadableImageError:
            continue  # `read_images` reports all unreadable files together
        if len(seen) > 1 or any(w != h for w, h in seen):
            examples = ', '.join(f'{w}x{h} ({f.name})' for (w, h), f in seen.items())
            raise ValueError(
                f'the images are not squares of one size: {examples}. Give --size; each image is '
                'then resized and cut to that square'
            )
    if not seen:
        raise ValueError(f'none of {len(files)} files can be read as an image')
    return next(iter(seen))[0]


def read_images(folder: str | Path, size: int | None = None) -> ImageSet:
    """Read a folder of images into memory.

    Args:
        folder: See `list_images`.
        size: Side of the square that each image is resized and cut to, in pixels; None takes the
            images' own size, which must then be the same square for all.

    Raises:
        FileNotFoundError: If there is no such folder, or no image in it.
        ValueError: If files cannot be read (the message names them), or the size cannot be known.
        MemoryError: If the images would not fit in the memory that is free.
    """
    files, labels, classes = list_images(folder)
    size = size or common_size(files)
    need, free = len(files) * 3 * size * size, psutil.virtual_memory().available
    if need > 0.8 * free:
        raise MemoryError(
            f'{len(files)} images of {size}x{size} take {need / 2**30:.1f} GiB, and '
            f'{free / 2**30:.1f} GiB are free: use a smaller --size, or fewer images'
        )
    images = np.empty((len(files), size, size, 3), np.uint8)
    digests = [''] * len(files)

    def read(i: int) -> str | None:
        def read_and_hash(path: str | Path) -> bytes:
            data = check_regular(path).read_bytes()
            digests[i] = hashlib.sha256(data).hexdigest()[:DIGEST_DIGITS]
            return data

        try:
            images[i] = resize_and_crop(load_rgb(files[i], read_and_hash), size)
        except UnreadableImageError as error:
            return f'{error.path} ({error.reason})'
        return None

    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        broken = [message for message in pool.map(read, range(len(files))) if message]
    if broken:
        more = f'\n  and {len(broken) - 10} more' if len(broken) > 10 else ''
        raise ValueError(
            f'{len(broken)} of {len(files)} files cannot be read as images; repair or remove:\n  '
            + '\n  '.join(broken[:10])
            + more
        )
    root = Path(folder).expanduser()
    names = [file.relative_to(root).as_posix() for file in files]
    return ImageSet(
        torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(),
        torch.tensor(labels),
        classes,
        dict(zip(names, digests, strict=True)),
    )
