# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Images of a toolbox's dataset, and images from what a config names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from mmengine import fileio
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS

from mmaselect.images.reading import load_rgb
from mmaselect.images.sources import ImageFolder, ImageSource

ARRAY_ORDERS = ('rgb', 'bgr')


class DatasetImages(ImageSource):
    """The images of a toolbox dataset, read past its pipeline: raw, and RGB.

    Args:
        dataset: Anything with ``__len__`` and ``get_data_info``; an entry holds ``img_path``, or
            ``img`` as an (H, W, 3) uint8 array.
        array_order: Channel order of arrays in memory. Files are always read as RGB.
    """

    def __init__(self, dataset: BaseDataset, array_order: str = 'rgb') -> None:
        if array_order not in ARRAY_ORDERS:
            raise ValueError(f"array_order must be 'rgb' or 'bgr', got {array_order!r}")
        self.dataset = dataset
        self.array_order = array_order

    def __len__(self) -> int:
        return len(self.dataset)

    def load(self, index: int) -> np.ndarray:
        info = self.dataset.get_data_info(index)
        if 'img' in info:
            image = np.asarray(info['img'])
            return np.ascontiguousarray(image[..., ::-1]) if self.array_order == 'bgr' else image
        if 'img_path' not in info:
            raise ValueError(
                f'{type(self.dataset).__name__} cannot serve as calibration set: its entries have '
                f'neither img_path nor img (they have {sorted(info)})'
            )
        return load_rgb(info['img_path'], fileio.get)

    def name(self, index: int) -> str:
        return str(self.dataset.get_data_info(index).get('img_path', f'image {index}'))

    def label(self, index: int) -> int | None:
        label = self.dataset.get_data_info(index).get('gt_label')
        return None if label is None or np.ndim(label) else int(label)


def build_image_source(
    calibration: str | Path | Mapping[str, Any] | ImageSource | BaseDataset | None,
    array_order: str = 'rgb',
) -> ImageSource:
    """An image source from a config's ``calibration``.

    Args:
        calibration: A folder of images, the config of a registered dataset (its labels and its
            pipeline are not used), or a source or dataset that is built already.
        array_order: See :class:`DatasetImages`.

    Raises:
        ValueError: If there is nothing to calibrate on.
    """
    if calibration is None:
        raise ValueError(
            "timestep='auto' needs calibration images: set calibration to the config of a dataset "
            '(usually the training set, without its pipeline) or to a folder of images; or set '
            'timestep to a number'
        )
    if isinstance(calibration, ImageSource):
        return calibration
    if isinstance(calibration, (str, Path)):
        return ImageFolder(calibration)
    if isinstance(calibration, Mapping):
        config = {key: value for key, value in calibration.items() if key != 'pipeline'}
        empty = (
            f'the calibration set is empty: {config.get("type")} found no images. Check its '
            f'data_root and data_prefix'
        )
        try:
            dataset = DATASETS.build(config)
        except ValueError as error:
            # What MMEngine's BaseDataset says when it serializes no entries.
            if 'need at least one array to concatenate' in str(error):
                raise ValueError(empty) from error
            raise
        if len(dataset) == 0:
            raise ValueError(empty)
        return DatasetImages(dataset, array_order)
    return DatasetImages(calibration, array_order)
