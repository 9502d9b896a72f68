# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Labeled images, all at one size: of a class each, or with a label map each."""

from __future__ import annotations

import hashlib
from abc import abstractmethod

import numpy as np
import torch
from PIL import Image

from mmaselect.images.calibration import CalibrationSet
from mmaselect.images.reading import resize_and_crop
from mmaselect.images.sources import ImageSource

#: Value of a label map for "no class", in MMSegmentation and here.
IGNORE_INDEX = 255


class LabeledSource(ImageSource):
    """Images with a class label each, or with a label map each.

    Attributes:
        task: ``'classification'`` or ``'segmentation'``.
    """

    task: str

    @abstractmethod
    def class_label(self, index: int) -> int:
        """The class of an image."""

    @abstractmethod
    def label_map(self, index: int) -> np.ndarray:
        """The label map of an image, (H, W) uint8."""

    @abstractmethod
    def identity(self, index: int) -> str:
        """Text that tells an image and its label from others, without reading the image."""


class LabeledImages(CalibrationSet):
    """A fixed, seeded choice of labeled images, all at one size.

    The choice is that of :class:`~mmaselect.images.calibration.CalibrationSet`: with the same
    dataset, number and seed, a sweep and a probe see the same images.

    Args:
        source: Images with labels.
        image_size: Side of the square that each image is scaled and cropped to, or
            (height, width), in pixels.
        num_images: How many to use; all of them if None, or if the source has fewer.
        seed: Seed of the choice.
    """

    source: LabeledSource

    def __init__(
        self,
        source: LabeledSource,
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
            digest.update(self.source.identity(index).encode())
        return digest.hexdigest()[:16]
