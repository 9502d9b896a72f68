# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Calibration images: which of a source's images, and at what size."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from mmaselect.checks import check_image_size, seed_number, whole_number
from mmaselect.images.copies import thumbnail
from mmaselect.images.reading import resize_and_crop, to_model_range
from mmaselect.images.sources import ImageSource
from mmaselect.images.views import (
    NUM_VIEWS,
    ImageViews,
    ViewBatch,
    ViewOptions,
    batch_views,
    make_views,
)

#: Memory for images between the two times that a sweep needs them: 170 images of 1024 x 1024.
KEPT_BYTES = 512 * 2**20
#: Sets the seed of the order of images apart from that of their choice.
_ORDER = 1


@dataclass(frozen=True)
class CalibrationBatch:
    """Some calibration images.

    Attributes:
        images: (B, 3, H, W), RGB in [-1, 1].
        indices: Position of each image in the calibration set; its noise depends on it.
        labels: (B,) class labels, or (B, H, W) label maps, where the source has them.
        views: Random views of the images, where the set was asked for them.
    """

    images: Tensor
    indices: list[int]
    labels: Tensor | None = None
    views: ViewBatch | None = None


@dataclass(frozen=True)
class Prepared:
    """What a set gives out of one image.

    Attributes:
        pixels: (H, W, 3) uint8, RGB, at the set's size.
        views: Its views, where the set has any.
    """

    pixels: np.ndarray
    views: ImageViews | None


class CalibrationSet:
    """A fixed, seeded choice of images from a source, all at one size.

    A sweep needs each image twice: first its hash, to look for a stored result, then its pixels.
    It is decoded once: :meth:`hashes` keeps what it has decoded, at the set's size, and
    :meth:`batch` lets go of it.

    Args:
        source: Where the images come from.
        image_size: Side of the square that each image is scaled and cropped to, or
            (height, width), in pixels.
        num_images: How many to use; all of them if the source has fewer.
        seed: Seed of the choice.
        kept_bytes: Memory for images that are kept; those that do not fit are decoded twice.
        views: How random views of each image are made; None for no views.

    Raises:
        ValueError: If the source is empty or ``num_images`` is not positive.
    """

    def __init__(
        self,
        source: ImageSource,
        image_size: int | tuple[int, int],
        num_images: int = 128,
        seed: int = 0,
        kept_bytes: int = KEPT_BYTES,
        views: ViewOptions | None = None,
    ) -> None:
        if len(source) == 0:
            raise ValueError('the calibration set is empty: timestep selection needs images')
        num_images = whole_number('num_images', num_images, 1)
        seed = seed_number('seed', seed)
        image_size = check_image_size('image_size', image_size)
        self.source = source
        self.image_size = image_size
        self.kept_bytes = kept_bytes
        self.seed = seed
        self.views = views
        order = np.random.default_rng(seed).permutation(len(source))
        self.chosen = sorted(int(i) for i in order[:num_images])
        self._kept: dict[int, Prepared] = {}

    def __len__(self) -> int:
        return len(self.chosen)

    @property
    def labels_available(self) -> bool:
        """Whether :meth:`labels` gives any."""
        return self.source.label(self.chosen[0]) is not None

    def labels(self, positions: list[int]) -> Tensor | None:
        """Class labels (B,) of some images, int64; None unless each of them has one."""
        labels = [self.source.label(self.chosen[position]) for position in positions]
        return None if None in labels else torch.tensor(labels, dtype=torch.long)

    def image(self, position: int) -> np.ndarray:
        """Image at a position of this set, (H, W, 3) uint8 RGB at the set's size."""
        return self._fit(self._decode(position))

    @property
    def order(self) -> list[int]:
        """All positions in a random order, which the seed fixes.

        Images of a source are often sorted by class: to use some of them, take the first of
        these.
        """
        rng = np.random.default_rng((self.seed, _ORDER))
        return [int(i) for i in rng.permutation(len(self))]

    def batches(
        self, batch_size: int, rank: int = 0, world_size: int = 1
    ) -> Iterator[CalibrationBatch]:
        """This rank's share, a batch at a time; memory does not grow with the number of images."""
        positions = list(range(rank, len(self), world_size))
        for start in range(0, len(positions), batch_size):
            yield self.batch(positions[start : start + batch_size])

    def batch(self, positions: Sequence[int]) -> CalibrationBatch:
        """The images at some positions."""
        positions = list(positions)
        prepared = [self._take(position) for position in positions]
        pixels = np.stack([one.pixels for one in prepared])
        images = to_model_range(torch.from_numpy(pixels).permute(0, 3, 1, 2))
        views = [one.views for one in prepared if one.views is not None]
        return CalibrationBatch(
            images, positions, self.labels(positions), batch_views(views) if views else None
        )

    def with_views(self, views: ViewOptions | None) -> Self:
        """The same images, with views or, by None, without."""
        viewed = copy(self)
        viewed.views, viewed._kept = views, {}
        return viewed

    def image_views(self, position: int) -> ImageViews:
        """Views of the image at a position: the same at every call, on every rank.

        Raises:
            ValueError: If the set was made without view options.
        """
        return self._make_views(position, self._decode(position))

    def _make_views(self, position: int, decoded: np.ndarray) -> ImageViews:
        if self.views is None:
            raise ValueError('this calibration set has no views: give it ViewOptions')
        seed = (self.seed, self.chosen[position])
        return make_views(decoded, self.image_size, self.views, seed)

    def hash_image(self, position: int) -> str:
        """Hash of the decoded pixels of the image at a position; equal for images of one color.

        Raises:
            ValueError: If the image cannot be read.
        """
        return self.identify(position)[0]

    def identify(self, position: int) -> tuple[str, bytes]:
        """What tells an image from others: :meth:`hash_image`, and what tells it from its copies.

        Raises:
            ValueError: If the image cannot be read.
        """
        decoded = self._decode(position)
        if position not in self._kept and len(self._kept) < self._num_kept:
            self._kept[position] = self._prepare(position, decoded)
        return self._hash(decoded), thumbnail(decoded)

    @staticmethod
    def _hash(decoded: np.ndarray) -> str:
        pixels = decoded.reshape(-1, decoded.shape[-1])
        if (pixels == pixels[0]).all():
            # One color is one image, whatever its size was.
            return hashlib.sha256(pixels[0].tobytes()).hexdigest()
        digest = hashlib.sha256(str(decoded.shape).encode())
        digest.update(np.ascontiguousarray(decoded).data)
        return digest.hexdigest()

    def hashes(self, rank: int = 0, world_size: int = 1) -> dict[int, str]:
        """Hash of the decoded pixels of each image in this rank's share, by position.

        Raises:
            ValueError: If an image cannot be read.
        """
        return {
            position: self.hash_image(position) for position in range(rank, len(self), world_size)
        }

    def fingerprint(self, hashes: Mapping[int, str] | None = None) -> str:
        """Hash of every image in the set and of its size, so that a stored result can be trusted.

        Args:
            hashes: The shares of all ranks from :meth:`hashes`; computed here if None.

        Raises:
            ValueError: If an image is missing from ``hashes``.
        """
        hashes = self.hashes() if hashes is None else hashes
        if sorted(hashes) != list(range(len(self))):
            raise ValueError(f'{len(hashes)} hashes are not those of {len(self)} images')
        digest = hashlib.sha256(str(self.image_size).encode())
        for position in range(len(self)):
            digest.update(hashes[position].encode())
        return digest.hexdigest()

    @property
    def _num_kept(self) -> int:
        """How many prepared images fit into the memory for them."""
        size = self.image_size
        height, width = (size, size) if isinstance(size, int) else size
        each = 3 * height * width * (1 + (0 if self.views is None else NUM_VIEWS))
        return self.kept_bytes // each

    def _decode(self, position: int) -> np.ndarray:
        """(H, W, 3) uint8, as large as the source has it."""
        return self.source.load(self.chosen[position])

    def _fit(self, decoded: np.ndarray) -> np.ndarray:
        """What the set gives out of a decoded image."""
        return resize_and_crop(decoded, self.image_size)

    def _prepare(self, position: int, decoded: np.ndarray) -> Prepared:
        """Image and views, from one decoding."""
        views = None if self.views is None else self._make_views(position, decoded)
        return Prepared(self._fit(decoded), views)

    def _take(self, position: int) -> Prepared:
        """Image and views, which are not kept any longer."""
        kept = self._kept.pop(position, None)
        return self._prepare(position, self._decode(position)) if kept is None else kept
