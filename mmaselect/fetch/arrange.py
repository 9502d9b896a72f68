# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""From what archives hold to the layouts that configs read, inside a folder, in place."""

from __future__ import annotations

import codecs
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.io import loadmat

from mmaselect.fetch.camvid import convert_camvid
from mmaselect.fetch.unpack import unpack


def camvid(folder: Path) -> None:
    """``labels`` (in colors) and ``frames`` become eleven classes in three parts."""
    label = next((folder / 'labels').rglob('*_L.png'), None)
    frame = next((folder / 'frames').rglob('*.png'), None)
    if label is None or frame is None:
        raise ValueError('the archives of CamVid hold no *_L.png labels, or no .png frames')
    convert_camvid(frame.parent, label.parent, folder)
    shutil.rmtree(folder / 'labels')
    shutil.rmtree(folder / 'frames')


class _ArraysOnly(pickle.Unpickler):
    """Reads pickles of NumPy arrays and plain values, and runs nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in (
            ('numpy.core.multiarray', '_reconstruct'),
            ('numpy._core.multiarray', '_reconstruct'),
        ):
            return np.zeros(0).__reduce__()[0]
        if (module, name) in (('numpy', 'ndarray'), ('numpy', 'dtype')):
            return getattr(np, name)
        if (module, name) == ('_codecs', 'encode'):  # how Python 3 writes bytes for Python 2
            return codecs.encode
        raise pickle.UnpicklingError(f'it names {module}.{name}, which no CIFAR-10 batch does')


def cifar10(folder: Path) -> None:
    """Batches of CIFAR-10 stay, for MMPretrain; next to them, PNG files by class are written."""
    batches = folder / 'cifar-10-batches-py'
    names = [name.decode() for name in _batch(batches / 'batches.meta')[b'label_names']]
    parts = {'train': [f'data_batch_{number}' for number in range(1, 6)], 'test': ['test_batch']}
    for part, files in parts.items():
        written = dict.fromkeys(range(len(names)), 0)
        for name in names:
            (folder / part / name).mkdir(parents=True)
        for file in files:
            batch = _batch(batches / file)
            pixels = np.asarray(batch[b'data'], np.uint8).reshape(-1, 3, 32, 32)
            for image, label in zip(pixels.transpose(0, 2, 3, 1), batch[b'labels'], strict=True):
                path = folder / part / names[label] / f'{written[label]:04d}.png'
                Image.fromarray(np.ascontiguousarray(image)).save(path)
                written[label] += 1


def _batch(path: Path) -> dict[bytes, Any]:
    with open(path, 'rb') as file:
        try:
            return _ArraysOnly(file, encoding='bytes').load()
        except pickle.UnpicklingError as error:
            raise ValueError(f'{path.name} is not a batch of CIFAR-10: {error}') from error


def imagenet(folder: Path) -> None:
    """Archives of synsets become folders; validation images go to those of their synsets."""
    inner = sorted((folder / 'train').glob('*.tar'))
    if not inner:
        raise ValueError('the training archive of ImageNet holds no archives of synsets')
    for archive in inner:
        unpack(archive, folder / 'train' / archive.stem)
        archive.unlink()
    kit = next(iter(folder.glob('ILSVRC2012_devkit*')), None)
    if kit is None:
        raise ValueError('the development kit of ImageNet holds no folder ILSVRC2012_devkit_t12')
    synsets = np.atleast_1d(loadmat(kit / 'data' / 'meta.mat', squeeze_me=True)['synsets'])
    # Inner nodes of the hierarchy have children, and no images.
    by_number = {
        int(entry['ILSVRC2012_ID']): str(entry['WNID'])
        for entry in synsets
        if int(entry['num_children']) == 0
    }
    truth = (kit / 'data' / 'ILSVRC2012_validation_ground_truth.txt').read_text().split()
    images = sorted((folder / 'val').glob('*.JPEG'))
    if len(images) != len(truth):
        raise ValueError(f'{len(images)} validation images of ImageNet have {len(truth)} labels')
    for image, number in zip(images, truth, strict=True):
        target = folder / 'val' / by_number[int(number)]
        target.mkdir(exist_ok=True)
        image.rename(target / image.name)
    shutil.rmtree(kit)
