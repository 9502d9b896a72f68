# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Two random views of an image, by torchvision, with what is known of where they lie in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from mmaselect.checks import choice, flag, is_number, is_sequence, keywords, shorten
from mmaselect.images.reading import to_model_range

#: Views of one image that a criterion compares.
NUM_VIEWS = 2
NOISE_CHOICES = ('own', 'shared')
PIXEL_CHOICES = ('disjoint', 'all')


@dataclass(frozen=True)
class ViewOptions:
    """How views are made.

    Attributes:
        scale: Smallest and largest side of the crop, as a share of the image's.
        flip: Mirror half of the views. False where left and right differ, as in digits or text.
        noise: ``'own'``: each view has its own noise draw, so that what noise alone put into two
            features is not a sign of a common image; ``'shared'``: both views have one draw.
        pixels: ``'disjoint'``: the two views are made from different pixels of the image (see
            :func:`split_pixels`), so that noise which is in the image itself (low light,
            microscopy, ultrasound) is not a sign of a common image either; ``'all'``: both are made
            from all of them.

    Raises:
        ValueError: If a value is out of range.
    """

    scale: tuple[float, float] = (0.6, 1.0)
    flip: bool = False
    noise: str = 'own'
    pixels: str = 'disjoint'

    def __post_init__(self) -> None:
        scale = self.scale
        if not (
            is_sequence(scale)
            and len(scale) == 2
            and all(is_number(share) for share in scale)
            and 0 < scale[0] <= scale[1] <= 1
        ):
            raise ValueError(
                f'views.scale must be the smallest and the largest side of a crop as shares of the '
                f"image's, 0 < smallest <= largest <= 1, got {shorten(scale)}"
            )
        object.__setattr__(self, 'scale', (float(scale[0]), float(scale[1])))
        flag('views.flip', self.flip)
        choice('views.noise', self.noise, NOISE_CHOICES)
        choice('views.pixels', self.pixels, PIXEL_CHOICES)

    @classmethod
    def parse(cls, views: ViewOptions | Mapping[str, Any] | None) -> ViewOptions:
        """View options from what a config says.

        Args:
            views: None for the defaults, a dict of some of the fields, or options.

        Raises:
            ValueError: If a key is not known, or a value is out of range.
        """
        if isinstance(views, cls):
            return views
        return cls(**keywords('views', views, [field.name for field in fields(cls)]))


@dataclass(frozen=True)
class ViewBoxes:
    """Where views lie in their images.

    Attributes:
        boxes: (B, V, 4), top, left, bottom and right of each view in the image, 0 to 1.
        flipped: (B, V), whether the view is mirrored.
    """

    boxes: Tensor
    flipped: Tensor

    def to(self, device: torch.device | str) -> ViewBoxes:
        return ViewBoxes(self.boxes.to(device), self.flipped.to(device))

    def __getitem__(self, index: slice | Tensor) -> ViewBoxes:
        return ViewBoxes(self.boxes[index], self.flipped[index])


@dataclass(frozen=True)
class ViewBatch:
    """Views of some images.

    Attributes:
        images: (B, V, 3, H, W), RGB in [-1, 1].
        where: Where they lie.
    """

    images: Tensor
    where: ViewBoxes


@dataclass(frozen=True)
class ImageViews:
    """Views of one image.

    Attributes:
        pixels: (V, H, W, 3), uint8, RGB.
        boxes: (V, 4), see :class:`ViewBoxes`.
        flipped: (V,), see there.
    """

    pixels: np.ndarray
    boxes: np.ndarray
    flipped: np.ndarray


def split_pixels(image: np.ndarray, seed: Sequence[int] = (0,)) -> tuple[np.ndarray, np.ndarray]:
    """Two images of one scene that share no pixel: the two colors of a checkerboard.

    A pixel that an image lacks is filled in from its four neighbors, all of which it has. Noise
    that is independent from pixel to pixel is then independent between the two; the idea is that
    of Noise2Self (Batson and Royer, arXiv 1901.11365).

    The fill is the mean of the neighbors, as long as they are alike. Impulse noise (salt and
    pepper, dead pixels) would be weakened and smeared by it: the views would look unlike the images
    that a model reads later. So one neighbor is drawn for each value. If it is an impulse, it is
    copied; otherwise the fill is the mean of the other neighbors.

    Args:
        image: (H, W, 3) uint8.
        seed: Seed of the neighbors that are drawn.

    Returns:
        tuple: Two images (H, W, 3) uint8.
    """
    if min(image.shape[:2]) < 2:
        return image, image
    # Reflection keeps the colors of the checkerboard: beyond row 0 lies row 1, not row 0.
    padded = np.pad(image.astype(np.int16), ((1, 1), (1, 1), (0, 0)), mode='reflect')
    white = np.add.outer(np.arange(image.shape[0]), np.arange(image.shape[1])) % 2 == 0
    around = np.stack([padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]])
    fill = (around.sum(0) + 2) // 4
    impulses = _find_impulses(padded, white)
    if impulses.any():
        marked = np.pad(impulses, ((1, 1), (1, 1), (0, 0)), mode='reflect')
        bad = np.stack([marked[:-2, 1:-1], marked[2:, 1:-1], marked[1:-1, :-2], marked[1:-1, 2:]])
        good = (~bad).sum(0)
        kept = (np.where(bad, 0, around).sum(0) + good // 2) // np.maximum(good, 1)
        drawn = np.random.default_rng(list(seed)).integers(0, 4, (1, *image.shape))
        one, is_impulse = (np.take_along_axis(each, drawn, 0)[0] for each in (around, bad))
        fill = np.where(is_impulse, one, np.where(good > 0, kept, fill))
    fill = fill.astype(np.uint8)
    return (
        np.where(white[..., None], image, fill),
        np.where(white[..., None], fill, image),
    )


def _find_impulses(padded: np.ndarray, white: np.ndarray) -> np.ndarray:
    """Values that stand out from all four diagonal neighbors, which are of the same color.

    A value must lie beyond all four by 48 gray levels, and by four standard deviations of the
    image's own noise: Gaussian noise, however strong, and clean edges hardly ever do that (0.0 to
    0.3 % of the values of CIFAR-10 and of digits), salt and pepper of 15 % does for 5 to 7 %.

    Args:
        padded: (H + 2, W + 2, 3) int16, the image with its reflected border.
        white: (H, W), one color of the checkerboard.

    Returns:
        (H, W, 3) bool.
    """
    diagonal = np.stack([padded[:-2, :-2], padded[2:, 2:], padded[2:, :-2], padded[:-2, 2:]])
    low, high, image = diagonal.min(0), diagonal.max(0), padded[1:-1, 1:-1]
    # Mean of the middle two of four: their median.
    residual = np.abs(image - (diagonal.sum(0) - low - high) / 2)
    margin = np.empty(white.shape)
    for color in (white, ~white):
        # Median absolute deviation, as a standard deviation of a normal distribution.
        margin[color] = max(48.0, 4 * 1.4826 * float(np.median(residual[color])))
    return (image > high + margin[..., None]) | (image < low - margin[..., None])


def make_views(
    image: np.ndarray, size: int | tuple[int, int], options: ViewOptions, seed: Sequence[int]
) -> ImageViews:
    """Crop random parts of an image, each resized to one size, some mirrored.

    The parts are taken from what :func:`~mmaselect.images.reading.resize_and_crop` keeps of the
    image, and are cut from its full resolution.

    Args:
        image: (H, W, 3) uint8, as it was decoded.
        size: Side of the square that a view is resized to, or (height, width), in pixels.
        options: How views are made.
        seed: Seed of the views; equal seeds give equal views.

    Returns:
        ImageViews: The views and where they lie.
    """
    height, width = (size, size) if isinstance(size, int) else size
    # The middle part that has the shape of `size`.
    scale = max(height / image.shape[0], width / image.shape[1])
    frame_height, frame_width = height / scale, width / scale
    frame_top = (image.shape[0] - frame_height) / 2
    frame_left = (image.shape[1] - frame_width) / 2
    rng = np.random.default_rng(list(seed))
    sources = (image, image)
    if options.pixels == 'disjoint':
        # A stream of its own: crops are the same whether impulses were found or not.
        sources = split_pixels(image, [*seed, 1])
    views, boxes, flips = [], [], []
    for source in sources:
        whole = torch.from_numpy(np.array(source)).permute(2, 0, 1)
        side = rng.uniform(*options.scale)
        rows = max(1, min(image.shape[0], round(side * frame_height)))
        columns = max(1, min(image.shape[1], round(side * frame_width)))
        top = round(frame_top + rng.uniform() * max(0.0, frame_height - rows))
        left = round(frame_left + rng.uniform() * max(0.0, frame_width - columns))
        top = max(0, min(top, image.shape[0] - rows))
        left = max(0, min(left, image.shape[1] - columns))
        flip = bool(rng.uniform() < 0.5) and options.flip
        view = F.resized_crop(
            whole,
            top,
            left,
            rows,
            columns,
            [height, width],
            interpolation=InterpolationMode.BICUBIC,
            antialias=True,
        )
        views.append(F.horizontal_flip(view) if flip else view)
        boxes.append(
            [
                (top - frame_top) / frame_height,
                (left - frame_left) / frame_width,
                (top + rows - frame_top) / frame_height,
                (left + columns - frame_left) / frame_width,
            ]
        )
        flips.append(flip)
    pixels = torch.stack(views).permute(0, 2, 3, 1).contiguous().numpy()
    return ImageViews(pixels, np.array(boxes), np.array(flips))


def batch_views(views: Sequence[ImageViews]) -> ViewBatch:
    """Views of several images, of one size, as one batch."""
    pixels = torch.from_numpy(np.stack([one.pixels for one in views]))
    return ViewBatch(
        to_model_range(pixels.permute(0, 1, 4, 2, 3)),
        ViewBoxes(
            torch.from_numpy(np.stack([one.boxes for one in views])),
            torch.from_numpy(np.stack([one.flipped for one in views])),
        ),
    )
