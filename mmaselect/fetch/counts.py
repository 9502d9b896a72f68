# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""What a data set's folder holds, counted from its own lists and from the files that are there.

Each function takes the folder that a config names and gives a number by what was counted. An image
counts only if its file is there. A missing list is a FileNotFoundError.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from scipy.io import loadmat

IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png')


def count_images(folder: Path, pattern: str = '*') -> int:
    """Number of image files of a folder that fit a pattern; 0 if there is no such folder."""
    return sum(path.suffix.lower() in IMAGE_SUFFIXES for path in folder.glob(pattern))


def _pairs(path: Path) -> dict[str, str]:
    """Lines of ``KEY VALUE`` (spaces in the value stay)."""
    lines = path.read_text(encoding='utf-8').splitlines()
    return dict(line.split(maxsplit=1) for line in lines if line.strip())


def _mat(path: Path) -> dict[str, Any]:
    """A MATLAB file, its arrays without dimensions of one entry."""
    return loadmat(path, squeeze_me=True)


def listed_birds(folder: Path) -> dict[str, int]:
    """Of CUB-200-2011 and NABirds."""
    images = _pairs(folder / 'images.txt')
    labels = _pairs(folder / 'image_class_labels.txt')
    is_train = _pairs(folder / 'train_test_split.txt')
    there = [number for number, name in images.items() if (folder / 'images' / name).is_file()]
    return {
        'training images': sum(is_train.get(number) == '1' for number in there),
        'test images': sum(is_train.get(number) == '0' for number in there),
        'classes': len({labels[number] for number in there if number in labels}),
    }


def flowers(folder: Path) -> dict[str, int]:
    """Of Oxford 102 Flowers."""
    split = _mat(folder / 'setid.mat')
    labels = np.atleast_1d(_mat(folder / 'imagelabels.mat')['labels'])
    names = {'training': 'trnid', 'validation': 'valid', 'test': 'tstid'}

    def there(numbers: Iterable[int]) -> int:
        return sum((folder / 'jpg' / f'image_{number:05d}.jpg').is_file() for number in numbers)

    return {
        'images': count_images(folder / 'jpg'),
        **{f'{part} images': there(np.atleast_1d(split[key])) for part, key in names.items()},
        'classes': len(set(labels.tolist())),
    }


def cars(folder: Path) -> dict[str, int]:
    """Of Stanford Cars, in the layout with a training and a test folder."""
    files = {'training': 'cars_train_annos.mat', 'test': 'cars_test_annos_withlabels.mat'}
    found: dict[str, int] = {}
    classes: set[int] = set()
    for part, name in files.items():
        images = folder / f'cars_{"train" if part == "training" else part}'
        entries = np.atleast_1d(_mat(folder / 'devkit' / name)['annotations'])
        found[f'{part} images'] = count_images(images)
        found[f'labelled {part} images'] = sum(
            (images / str(entry['fname'])).is_file() for entry in entries
        )
        classes |= {int(entry['class']) for entry in entries}
    return {**found, 'classes': len(classes)}


def dogs(folder: Path) -> dict[str, int]:
    """Of Stanford Dogs."""
    lists = folder / 'lists' if (folder / 'lists').is_dir() else folder
    found: dict[str, int] = {'images': count_images(folder / 'Images', '*/*')}
    labels: set[int] = set()
    for part in ('train', 'test'):
        entries = _mat(lists / f'{part}_list.mat')
        names = np.atleast_1d(entries['file_list'])
        key = 'training' if part == 'train' else part
        found[f'{key} images'] = sum((folder / 'Images' / str(name)).is_file() for name in names)
        labels |= set(np.atleast_1d(entries['labels']).tolist())
    return {**found, 'classes': len(labels)}


def aircraft(folder: Path) -> dict[str, int]:
    """Of FGVC-Aircraft, by variant."""
    data = folder / 'data'
    found: dict[str, int] = {'images': count_images(data / 'images')}
    variants: set[str] = set()
    for part, name in (('training', 'train'), ('validation', 'val'), ('test', 'test')):
        entries = _pairs(data / f'images_variant_{name}.txt')
        found[f'{part} images'] = sum(
            (data / 'images' / f'{number}.jpg').is_file() for number in entries
        )
        variants |= set(entries.values())
    return {**found, 'classes': len(variants)}


def ade20k(folder: Path) -> dict[str, int]:
    """Of ADE20K."""
    return {
        f'{part} {kind}': count_images(folder / kind / part)
        for part in ('training', 'validation')
        for kind in ('images', 'annotations')
    }


def camvid(folder: Path) -> dict[str, int]:
    """Of CamVid."""
    return {
        f'{part} {kind}': count_images(folder / kind / part)
        for part in ('train', 'val', 'test')
        for kind in ('images', 'annotations')
    }


def folders_of_classes(folder: Path) -> dict[str, int]:
    """Of ``{train,val,test}/<class>/`` folders, whichever of the three are there."""
    parts = [part for part in ('train', 'val', 'test') if (folder / part).is_dir()]
    classes = {path.name for part in parts for path in (folder / part).iterdir() if path.is_dir()}
    found = {f'{part} images': count_images(folder / part, '*/*') for part in parts}
    return {**found, 'classes': len(classes)}
