# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Labeled images of a toolbox dataset, read past its pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import numpy as np
from mmengine.dataset import BaseDataset

from mmaselect.images.labeled import LabeledImages, LabeledSource
from mmaselect.images.reading import naming_image
from mmaselect.openmmlab.dataset_images import DatasetImages, build_dataset


class DatasetLabels(DatasetImages, LabeledSource):
    """Images of a toolbox dataset with their labels.

    Args:
        dataset: One of MMPretrain (entries hold ``gt_label``) or of MMSegmentation (entries hold
            ``gt_seg_map`` or ``seg_map_path``).
        task: ``'classification'`` or ``'segmentation'``.
        array_order: Channel order of arrays in memory, ``'rgb'`` or ``'bgr'``.
    """

    def __init__(self, dataset: BaseDataset, task: str, array_order: str = 'rgb') -> None:
        super().__init__(dataset, array_order)
        self.task = task
        if task == 'segmentation':
            from mmseg.datasets.transforms import LoadAnnotations

            self._load_annotations = LoadAnnotations()

    def class_label(self, index: int) -> int:
        """The image's class.

        Raises:
            ValueError: If the dataset gives none, or more than one.
        """
        label = self.label(index)
        if label is None:
            got = self.dataset.get_data_info(index).get('gt_label')
            raise ValueError(
                f'{self.name(index)}: a linear probe needs one class label (gt_label) per image, '
                f'but {type(self.dataset).__name__} gives {got!r}. Use a single-label dataset'
            )
        return label

    def label_map(self, index: int) -> np.ndarray:
        """The image's label map, (H, W) uint8, as MMSegmentation's own loading gives it.

        Raises:
            ValueError: If the dataset gives none.
        """
        entry, loading = self.entry(index)
        info = dict(entry)
        if 'gt_seg_map' not in info:
            if 'seg_map_path' not in info:
                raise ValueError(
                    f'{self.name(index)}: a per-pixel probe needs a label map, but entries of '
                    f'{type(self.dataset).__name__} have neither gt_seg_map nor seg_map_path'
                )
            info['seg_fields'] = []
            # The config's own, if it has one: it may state a backend or reduce_zero_label.
            with naming_image(info['seg_map_path']):
                for transform in loading.label_transforms() or [self._load_annotations]:
                    info = transform(info)
        return np.asarray(info['gt_seg_map'])

    def identity(self, index: int) -> str:
        info = self.dataset.get_data_info(index)
        return f'{info.get("img_path", index)}{info.get("gt_label", "")}'


def build_labeled_images(
    dataset: Mapping[str, Any],
    task: str,
    image_size: int | tuple[int, int],
    num_images: int | None,
    seed: int,
    array_order: str = 'rgb',
) -> LabeledImages:
    """Labeled images of a dataset's config, past its pipeline.

    Args:
        dataset: The config.
        task: ``'classification'`` or ``'segmentation'``.
        image_size: See :class:`LabeledImages`, as for the next two.
        num_images: See there.
        seed: See there.
        array_order: See :class:`DatasetLabels`.
    """
    return LabeledImages(
        DatasetLabels(build_dataset(deepcopy(dict(dataset))), task, array_order),
        image_size,
        num_images,
        seed,
    )
