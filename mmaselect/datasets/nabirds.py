# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""NABirds: 555 kinds of North American birds, 23,929 training and 24,633 test images."""

import os.path as osp
from typing import Any

from mmengine import list_from_file
from mmpretrain.datasets import BaseDataset

from mmaselect.checks import choice
from mmaselect.datasets.layout import require_layout
from mmaselect.openmmlab.registries import DATASETS

SOURCE = 'https://dl.allaboutbirds.org/nabirds (`mmaselect data get nabirds` unpacks it)'
LAYOUT = """
nabirds
├── images
│   ├── 0295
│   │   ├── 0139e4eb06d545aab81e54b5d6e9a0e8.jpg
│   │   └── ...
│   └── ...
├── images.txt
├── image_class_labels.txt
├── train_test_split.txt
└── classes.txt
"""


@DATASETS.register_module()
class NABirds(BaseDataset):
    """The `NABirds <https://dl.allaboutbirds.org/nabirds>`_ data set (version 1).

    The official archive, unpacked: ::

        nabirds
        ├── images
        │   ├── 0295
        │   │   ├── 0139e4eb06d545aab81e54b5d6e9a0e8.jpg
        │   │   └── ...
        │   └── ...
        ├── images.txt
        ├── image_class_labels.txt
        ├── train_test_split.txt
        └── classes.txt

    ``classes.txt`` names 1,011 nodes of a hierarchy and only 555 of them carry images. Labels 0 to
    554 are those nodes in the order of their official numbers, their names ``metainfo['classes']``.

    Args:
        data_root: The folder above.
        split: ``'train'`` (23,929 images) or ``'test'`` (24,633). Defaults to ``'train'``.
        **kwargs: Further arguments of :class:`mmpretrain.datasets.BaseDataset`.

    Raises:
        ValueError: If ``split`` is neither of the two, or the text files list different images.
        FileNotFoundError: If a text file or the image folder is missing.
    """

    SPLITS = ('train', 'test')
    FILES = ('images.txt', 'image_class_labels.txt', 'train_test_split.txt', 'classes.txt')

    def __init__(self, data_root: str, split: str = 'train', **kwargs: Any) -> None:
        choice('NABirds: split', split, self.SPLITS)
        self.split = split
        kwargs.setdefault('test_mode', split == 'test')
        super().__init__(ann_file='', data_root=data_root, data_prefix='images', **kwargs)

    def _read_pairs(self, name: str) -> dict[str, str]:
        """Read a text file of ``<key> <value>`` lines; a value may hold spaces."""
        lines = list_from_file(osp.join(self.data_root, name))
        return dict(line.strip().split(maxsplit=1) for line in lines if line.strip())

    def load_data_list(self) -> list[dict]:
        """Join the official text files on their image ids."""
        require_layout('NABirds', self.data_root, ['images', *self.FILES], LAYOUT, SOURCE)
        paths, nodes, is_train, names = map(self._read_pairs, self.FILES)
        if not paths.keys() == nodes.keys() == is_train.keys():
            raise ValueError(
                f'NABirds: {self.FILES[0]}, {self.FILES[1]} and {self.FILES[2]} in '
                f'{self.data_root!r} list {len(paths)}, {len(nodes)} and {len(is_train)} images '
                'and not the same ones; unpack the official archive again.'
            )
        used = sorted(set(nodes.values()), key=int)
        labels = {node: label for label, node in enumerate(used)}
        self._metainfo.setdefault('classes', tuple(names[node] for node in used))
        flag = '1' if self.split == 'train' else '0'
        return [
            dict(img_path=osp.join(self.img_prefix, path), gt_label=labels[nodes[image]])
            for image, path in paths.items()
            if is_train[image] == flag
        ]

    def extra_repr(self) -> list[str]:
        """The lines about this data set in its printed form."""
        return [f'Split: \t{self.split}', f'Root of dataset: \t{self.data_root}']
