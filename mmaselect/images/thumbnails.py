# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Small pictures of a calibration set, to see what a selection was made on."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmaselect.images.calibration import CalibrationSet
from mmaselect.images.reading import resize_and_crop

#: As many as a selection uses by default.
MOST = 128

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Thumbnail:
    """A small picture.

    Attributes:
        name: Name of the file, or of the image in memory.
        pixels: (side, side, 3) uint8, RGB.
    """

    name: str
    pixels: np.ndarray


def thumbnails(
    images: CalibrationSet, scored: int | None = None, count: int = MOST, side: int = 72
) -> list[Thumbnail]:
    """The images that a sweep scored, or some of them, evenly spread.

    Args:
        images: The calibration set.
        scored: How many of the set were scored: a race takes them in the set's order, and may end
            before it has seen all. All of them if None.
        count: How many at most.
        side: Pixels along each side.

    Raises:
        ValueError: If an image cannot be read.
    """
    used = sorted(images.order[:scored])
    spread = np.linspace(0, len(used) - 1, min(count, len(used))).round().astype(int)
    return [
        Thumbnail(
            Path(images.source.name(images.chosen[place])).name,
            resize_and_crop(images.image(place), side),
        )
        for place in (used[index] for index in spread)
    ]


def try_thumbnails(images: CalibrationSet, scored: int | None = None) -> list[Thumbnail]:
    """The same, or none with a line in the log, where an image is not there any more."""
    try:
        return thumbnails(images, scored)
    except (OSError, ValueError) as error:
        logger.warning('no thumbnails of the calibration images: %s', error)
        return []
