# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Labeled images of a toolbox dataset, read past its pipeline, all at one size."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from mmengine.dataset import BaseDataset
from PIL import Image

from mmaselect.images.calibration import CalibrationSet
from mmaselect.images.datasets import DatasetImages, build_dataset
from mmaselect.images.reading import resize_and_crop

#: Value of a label map for "no class", in MMSegmentation and here.
IGNORE_INDEX = 255


class DatasetLabels(DatasetImages):
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
            for transform in loading.label_transforms() or [self._load_annotations]:
                info = transform(info)
        return np.asarray(info['gt_seg_map'])


class LabelledImages(CalibrationSet):
    """A fixed, seeded choice of labeled images, all at one size.

    The choice is that of :class:`~mmaselect.images.calibration.CalibrationSet`: with the same
    dataset, number and seed, a sweep and a probe see the same images.

    Args:
        source: Images with labels.
        image_size: Side of the square that each image is scaled and cropped to, or
            (height, width), in pixels.
        num_images: How many to use; all of them if None, or if the source has fewer.
        seed: Of the choice.
    """

    source: DatasetLabels

    def __init__(
        self,
        source: DatasetLabels,
        image_size: int | tuple[int, int],
        num_images: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(
            source, image_size, len(source) if num_images is None else num_images, seed
        )

    @property
    def labels_available(self) -> bool:
        return True

    def labels(self, positions: list[int]) -> torch.Tensor:
        """Labels of some images: (B,), or label maps (B, H, W) at this set's size, int64."""
        if self.source.task == 'classification':
            values = [self.source.class_label(self.chosen[position]) for position in positions]
            return torch.tensor(values, dtype=torch.long)
        # Nearest: a pixel between two classes belongs to one of them.
        nearest = Image.Resampling.NEAREST
        maps = [
            resize_and_crop(self.source.label_map(self.chosen[position]), self.image_size, nearest)
            for position in positions
        ]
        return torch.from_numpy(np.stack(maps)).long()

    def identity(self) -> str:
        """Hash of which images these are (not of their pixels: that would read them all).

        How their views are made, where they have any, is in it.
        """
        digest = hashlib.sha256(f'{self.image_size}'.encode())
        if self.views is not None:
            digest.update(repr(self.views).encode())
        for index in self.chosen:
            info = self.source.dataset.get_data_info(index)
            digest.update(str(info.get('img_path', index)).encode())
            digest.update(str(info.get('gt_label', '')).encode())
        return digest.hexdigest()[:16]


def build_labelled_images(
    dataset: Mapping[str, Any],
    task: str,
    image_size: int | tuple[int, int],
    num_images: int | None,
    seed: int,
    array_order: str = 'rgb',
) -> LabelledImages:
    """Labeled images of a dataset's config, past its pipeline.

    Args:
        dataset: The config.
        task: ``'classification'`` or ``'segmentation'``.
        image_size: See :class:`LabelledImages`, as for the next two.
        num_images: See there.
        seed: See there.
        array_order: See :class:`DatasetLabels`.
    """
    return LabelledImages(
        DatasetLabels(build_dataset(deepcopy(dict(dataset))), task, array_order),
        image_size,
        num_images,
        seed,
    )
