# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Stanford Dogs: 120 breeds, 12,000 training and 8,580 test images."""

import os.path as osp
from typing import Any

import mat4py
from mmpretrain.datasets import BaseDataset

from mmaselect.checks import choice
from mmaselect.datasets.layout import require_layout
from mmaselect.openmmlab.registries import DATASETS

SOURCE = 'http://vision.stanford.edu/aditya86/ImageNetDogs/ (or run `mmaselect data get dogs`)'
LAYOUT = """
stanford_dogs
├── Images
│   ├── n02085620-Chihuahua
│   │   ├── n02085620_10074.jpg
│   │   └── ...
│   └── ...
├── train_list.mat      (or lists/train_list.mat)
└── test_list.mat       (or lists/test_list.mat)
"""


@DATASETS.register_module()
class StanfordDogs(BaseDataset):
    """The `Stanford Dogs <http://vision.stanford.edu/aditya86/ImageNetDogs/>`_ data set.

    ``images.tar`` and ``lists.tar`` of the official page, unpacked into one folder: ::

        stanford_dogs
        ├── Images
        │   ├── n02085620-Chihuahua
        │   │   ├── n02085620_10074.jpg
        │   │   └── ...
        │   └── ...
        ├── train_list.mat      (or lists/train_list.mat)
        └── test_list.mat       (or lists/test_list.mat)

    Class names are the breeds as the folder names spell them (``'Chihuahua'``), in the order of the
    official labels.

    Args:
        data_root: The folder above.
        split: ``'train'`` (12,000 images) or ``'test'`` (8,580). Defaults to ``'train'``.
        **kwargs: Further arguments of :class:`mmpretrain.datasets.BaseDataset`.

    Raises:
        ValueError: If ``split`` is neither of the two, or the lists contradict themselves.
        FileNotFoundError: If a list or the image folder is missing.
    """

    SPLITS = ('train', 'test')

    def __init__(self, data_root: str, split: str = 'train', **kwargs: Any) -> None:
        choice('StanfordDogs: split', split, self.SPLITS)
        self.split = split
        kwargs.setdefault('test_mode', split == 'test')
        super().__init__(ann_file='', data_root=data_root, data_prefix='Images', **kwargs)

    def load_data_list(self) -> list[dict]:
        """Read both official lists: one holds the images, the two together name the classes."""
        folder = 'lists' if osp.isdir(osp.join(self.data_root, 'lists')) else ''
        lists = {split: osp.join(folder, f'{split}_list.mat') for split in self.SPLITS}
        require_layout('StanfordDogs', self.data_root, ['Images', *lists.values()], LAYOUT, SOURCE)
        data_list = []
        breeds: dict[int, str] = {}
        for split, path in lists.items():
            table = mat4py.loadmat(osp.join(self.data_root, path))
            for (file_name,), (label,) in zip(table['file_list'], table['labels'], strict=True):
                label = int(label) - 1
                breed = file_name.split('/')[0].split('-', 1)[1]
                if breeds.setdefault(label, breed) != breed:
                    raise ValueError(
                        f'StanfordDogs: {path} gives label {label + 1} to both '
                        f'{breeds[label]!r} and {breed!r}; unpack the official lists.tar again.'
                    )
                if split == self.split:
                    img_path = osp.join(self.img_prefix, file_name)
                    data_list.append(dict(img_path=img_path, gt_label=label))
        self._metainfo.setdefault('classes', tuple(breeds[label] for label in sorted(breeds)))
        return data_list

    def extra_repr(self) -> list[str]:
        """The lines about this data set in its printed form."""
        return [f'Split: \t{self.split}', f'Root of dataset: \t{self.data_root}']
