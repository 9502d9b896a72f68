# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""CamVid with the eleven classes that segmentation papers report."""

import os.path as osp
from typing import Any, ClassVar

import mmengine.fileio as fileio
from mmseg.datasets import BaseSegDataset

from mmaselect.datasets.layout import require_layout
from mmaselect.openmmlab.registries import DATASETS

SOURCE = (
    'http://mi.eng.cam.ac.uk/research/projects/VideoRec/CamVid/ and convert it with '
    'tools/dataset_converters/camvid.py (`mmaselect data get camvid` does both)'
)
LAYOUT = """
camvid11
├── images
│   ├── train           (367 images, .png or .jpg)
│   ├── val             (101)
│   └── test            (233)
└── annotations
    ├── train           (.png, 0..10 = the classes, 255 = ignore)
    ├── val
    └── test
"""


@DATASETS.register_module()
class CamVidDataset(BaseSegDataset):
    """CamVid street scenes, eleven classes, in MMSegmentation's usual layout: ::

        camvid11
        ├── images
        │   ├── train           (367 images, .png or .jpg)
        │   ├── val             (101)
        │   └── test            (233)
        └── annotations
            ├── train           (.png, 0..10 = the classes, 255 = ignore)
            ├── val
            └── test

    ``tools/dataset_converters/camvid.py`` makes it from the original 32-class release.

    Args:
        data_root: The folder above.
        data_prefix: ``dict(img_path='images/train', seg_map_path='annotations/train')``.
        img_suffix: ``'.jpg'``, ``'.png'``, or None for whichever of the two the
            image folder holds. Defaults to None.
        **kwargs: Further arguments of :class:`mmseg.datasets.BaseSegDataset`.

    Raises:
        FileNotFoundError: If a folder is missing.
        ValueError: If ``img_suffix`` is None and the image folder holds neither or both kinds.
    """

    SUFFIXES = ('.jpg', '.png')
    METAINFO: ClassVar[dict] = dict(
        classes=(
            'Sky',
            'Building',
            'Pole',
            'Road',
            'Pavement',
            'Tree',
            'SignSymbol',
            'Fence',
            'Car',
            'Pedestrian',
            'Bicyclist',
        ),
        palette=[
            [128, 128, 128],
            [128, 0, 0],
            [192, 192, 128],
            [128, 64, 128],
            [60, 40, 222],
            [128, 128, 0],
            [192, 128, 128],
            [64, 64, 128],
            [64, 0, 128],
            [64, 64, 0],
            [0, 128, 192],
        ],
    )

    img_suffix: str | None

    def __init__(
        self, data_root: str, data_prefix: dict, img_suffix: str | None = None, **kwargs: Any
    ) -> None:
        super().__init__(
            data_root=data_root, data_prefix=data_prefix, img_suffix=img_suffix, **kwargs
        )

    def load_data_list(self) -> list[dict]:
        """List the images, after a check of the folders and a look at the images' suffix."""
        folders = [
            osp.relpath(folder, self.data_root) for folder in self.data_prefix.values() if folder
        ]
        require_layout('CamVidDataset', self.data_root, folders, LAYOUT, SOURCE)
        if self.img_suffix is None:
            self.img_suffix = self._find_suffix()
        return super().load_data_list()

    def _find_suffix(self) -> str:
        folder = self.data_prefix['img_path']
        found = [
            suffix
            for suffix in self.SUFFIXES
            if next(fileio.list_dir_or_file(folder, list_dir=False, suffix=suffix), None)
        ]
        if len(found) != 1:
            what = 'both .jpg and .png' if found else 'neither .jpg nor .png'
            raise ValueError(
                f'CamVidDataset: {folder!r} holds {what} images; it must hold one kind, or '
                '`img_suffix` must say which kind to read.'
            )
        return found[0]
