# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Digits in noise: a segmentation task in which the timestep matters, made of a pip package."""

from typing import Any, ClassVar

import cv2
import numpy as np
from mmpretrain.utils import require
from mmseg.datasets import BaseSegDataset

from mmaselect.checks import choice
from mmaselect.openmmlab.registries import DATASETS

#: Side of a cell, which is that of the images that ``mmaselect://dit_digits`` was trained on.
CELL = 28
#: Side of a digit in its cell.
DIGIT = 20
#: Share of the handwritten digits that is for training.
TRAIN_SHARE = 0.6
#: Label of what is around the digits: MMSegmentation leaves it out.
IGNORED = 255
PALETTE = [
    *([230, 25, 75], [60, 180, 75], [255, 225, 25], [0, 130, 200], [245, 130, 48]),
    *([145, 30, 180], [70, 240, 240], [240, 50, 230], [210, 245, 60], [170, 110, 40]),
]


@DATASETS.register_module()
class NoisyDigitsDataset(BaseSegDataset):
    """Handwritten digits on a canvas, in Gaussian noise: which digit is where?

    The digits are scikit-learn's 1,797, enlarged from 8x8 pixels. Nothing is downloaded and nothing
    written. A network that was trained on clean digits meets noise here that it does not expect
    at t = 0. A canvas is a function of the seed, the split and its position.

    Items carry the image itself, ``img`` (uint8, (H, W, 3), BGR), and its labels, ``gt_seg_map``
    (uint8, (H, W)): the square around each digit is of its class, and all else is left out. A
    pipeline starts with ``LoadImageFromNDArray`` and needs no ``LoadAnnotations``.

    Args:
        split: ``'train'`` or ``'val'``. Defaults to ``'train'``.
        num_canvases: Number of canvases, at least 1. Defaults to 400.
        side: Digits along each side of a canvas. Defaults to 2.
        noise: Standard deviation of the noise, for pixels in [-1, 1]. Defaults to 0.4.
        seed: Seed of the canvases. Defaults to 0.
        **kwargs: Further arguments of :class:`mmseg.datasets.BaseSegDataset`.

    Raises:
        ImportError: If scikit-learn is not installed.
        ValueError: If ``split`` is unknown, or a number out of range.
    """

    SPLITS = ('train', 'val')
    METAINFO: ClassVar[dict] = dict(
        classes=tuple(f'digit {number}' for number in range(10)), palette=PALETTE
    )

    @require('scikit-learn', 'pip install scikit-learn')
    def __init__(
        self,
        split: str = 'train',
        num_canvases: int = 400,
        side: int = 2,
        noise: float = 0.4,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        choice('NoisyDigitsDataset: split', split, self.SPLITS)
        for name, value in (('num_canvases', num_canvases), ('side', side)):
            if value < 1:
                raise ValueError(f'NoisyDigitsDataset: {name} is {value}; it must be at least 1.')
        if not 0 <= noise <= 2:
            raise ValueError(f'NoisyDigitsDataset: noise is {noise}; it must be from 0 to 2.')
        self.split = split
        self.num_canvases = num_canvases
        self.side = side
        self.noise = noise
        self.seed = seed
        super().__init__(**kwargs)

    def load_data_list(self) -> list[dict]:
        """Make every canvas of the split."""
        from sklearn.datasets import load_digits

        found = load_digits()
        images, targets = found.images.astype(np.float32) / 16, found.target
        cut = int(TRAIN_SHARE * len(images))
        part = slice(cut) if self.split == 'train' else slice(cut, None)
        images, targets = images[part], targets[part]
        data_list = []
        for number in range(self.num_canvases):
            rng = np.random.default_rng([self.seed, self.SPLITS.index(self.split), number])
            canvas = np.zeros((self.side * CELL, self.side * CELL), np.float32)
            labels = np.full(canvas.shape, IGNORED, np.uint8)
            for cell in range(self.side**2):
                index = rng.integers(len(images))
                ink = cv2.resize(images[index], (DIGIT, DIGIT), interpolation=cv2.INTER_CUBIC)
                top, left = rng.integers(CELL - DIGIT + 1, size=2) + CELL * np.array(
                    divmod(cell, self.side)
                )
                place = slice(top, top + DIGIT), slice(left, left + DIGIT)
                canvas[place] = ink.clip(0, 1)
                labels[place] = targets[index]
            noisy = 255 * canvas + rng.normal(0, 127.5 * self.noise, canvas.shape)
            image = np.repeat(noisy.clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)
            data_list.append(
                dict(
                    img=image,
                    gt_seg_map=labels,
                    seg_fields=['gt_seg_map'],
                    label_map=self.label_map,
                    reduce_zero_label=self.reduce_zero_label,
                )
            )
        return data_list
