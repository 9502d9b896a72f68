# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Photo collages: a segmentation task made of data that comes inside pip packages."""

from typing import Any, ClassVar

import cv2
import numpy as np
from mmpretrain.utils import require
from mmseg.datasets import BaseSegDataset

from mmaselect.checks import choice
from mmaselect.openmmlab.registries import DATASETS

#: Photographs that are inside the scikit-image wheel, and the color that a label map shows each in.
PHOTOGRAPHS = {
    'astronaut': [230, 25, 75],
    'brick': [145, 30, 180],
    'chelsea': [245, 130, 48],
    'coffee': [170, 110, 40],
    'grass': [60, 180, 75],
    'gravel': [128, 128, 128],
    'hubble_deep_field': [0, 0, 128],
    'retina': [255, 225, 25],
    'rocket': [0, 130, 200],
}
#: Share of each photograph's width, and of the handwritten digits, that is for training.
TRAIN_SHARE = 0.6
#: Side of a crop before it is shrunk, as a multiple of the collage's.
ZOOM = (1.0, 4.0)
#: Side of a digit as a share of the collage's.
DIGIT_SHARE = (0.75, 1.0)
#: Ink of at least this opacity belongs to the digit.
INK = 0.4


@DATASETS.register_module()
class PhotoCollageDataset(BaseSegDataset):
    """Two photographs, one seen through a window in the shape of a digit: which is where?

    The photographs are nine of scikit-image's, and a pixel's class is the one that it comes from;
    the windows are scikit-learn's 1,797 handwritten digits, enlarged from 8x8 pixels. Nothing is
    downloaded and nothing written. Training takes the left part of every photograph, validation
    the rest, and the digits are divided alike. A collage is a function of the seed, the split and
    its position, so every process and every run gets the same ones.

    Items carry the image itself, ``img`` (uint8, (H, W, 3), BGR as an image file is read), and its
    labels, ``gt_seg_map`` (uint8, (H, W)), so a pipeline starts with ``LoadImageFromNDArray`` and
    needs no ``LoadAnnotations``.

    Args:
        split: ``'train'`` or ``'val'``. Defaults to ``'train'``.
        num_collages: Number of collages, at least 1. Defaults to 1000.
        size: Height and width of a collage in pixels, at least 16. Defaults to 64.
        seed: Seed of the collages. Defaults to 0.
        **kwargs: Further arguments of :class:`mmseg.datasets.BaseSegDataset`.

    Raises:
        ImportError: If scikit-learn or scikit-image is not installed.
        ValueError: If ``split`` is unknown, or a number out of range.
    """

    SPLITS = ('train', 'val')
    METAINFO: ClassVar[dict] = dict(classes=tuple(PHOTOGRAPHS), palette=list(PHOTOGRAPHS.values()))

    @require('scikit-learn', 'pip install scikit-learn')
    @require('scikit-image', 'pip install scikit-image')
    def __init__(
        self,
        split: str = 'train',
        num_collages: int = 1000,
        size: int = 64,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        choice('PhotoCollageDataset: split', split, self.SPLITS)
        for name, value, least in (('num_collages', num_collages, 1), ('size', size, 16)):
            if value < least:
                raise ValueError(
                    f'PhotoCollageDataset: {name} is {value}; it must be at least {least}.'
                )
        self.split = split
        self.num_collages = num_collages
        self.size = size
        self.seed = seed
        super().__init__(**kwargs)

    def load_data_list(self) -> list[dict]:
        """Make every collage of the split."""
        photographs = _load_photographs(self.split)
        digits = _load_digits(self.split)
        data_list = []
        for number in range(self.num_collages):
            rng = np.random.default_rng([self.seed, self.SPLITS.index(self.split), number])
            outer, inner = rng.choice(len(photographs), 2, replace=False)
            window = _place_digit(digits[rng.integers(len(digits))], self.size, rng)
            image = np.where(
                window[..., None],
                _crop(photographs[inner], self.size, rng),
                _crop(photographs[outer], self.size, rng),
            )
            data_list.append(
                dict(
                    img=image,
                    gt_seg_map=np.where(window, inner, outer).astype(np.uint8),
                    seg_fields=['gt_seg_map'],
                    label_map=self.label_map,
                    reduce_zero_label=self.reduce_zero_label,
                )
            )
        return data_list


def _load_photographs(split: str) -> list[np.ndarray]:
    """Load the split's part of every photograph as uint8 BGR arrays (H, W, 3)."""
    import skimage.data

    parts = []
    for name in PHOTOGRAPHS:
        image = getattr(skimage.data, name)()
        gray = image.ndim == 2
        image = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR if gray else cv2.COLOR_RGB2BGR)
        cut = int(TRAIN_SHARE * image.shape[1])
        parts.append(image[:, :cut] if split == 'train' else image[:, cut:])
    return parts


def _load_digits(split: str) -> np.ndarray:
    """Load the split's digits: opacities (N, 8, 8) in [0, 1]."""
    from sklearn.datasets import load_digits

    digits = load_digits().images.astype(np.float32) / 16
    cut = int(TRAIN_SHARE * len(digits))
    return digits[:cut] if split == 'train' else digits[cut:]


def _crop(photograph: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Cut a random square, and shrink it to (size, size, 3)."""
    side = min(int(size * rng.uniform(*ZOOM)), *photograph.shape[:2])
    top, left = (rng.integers(length - side + 1) for length in photograph.shape[:2])
    square = photograph[top : top + side, left : left + side]
    return cv2.resize(square, (size, size), interpolation=cv2.INTER_AREA)


def _place_digit(digit: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Put an enlarged digit at a random place: bool (size, size), true on its ink."""
    side = round(size * rng.uniform(*DIGIT_SHARE))
    top, left = rng.integers(size - side + 1, size=2)
    window = np.zeros((size, size), bool)
    ink = cv2.resize(digit, (side, side), interpolation=cv2.INTER_CUBIC) >= INK
    window[top : top + side, left : left + side] = ink
    return window
