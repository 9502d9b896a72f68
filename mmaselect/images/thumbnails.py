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
        name: Of the file, or of the image in memory.
        pixels: (side, side, 3) uint8, RGB.
    """

    name: str
    pixels: np.ndarray


def thumbnails(images: CalibrationSet, count: int = MOST, side: int = 72) -> list[Thumbnail]:
    """All images of a set, or as many, evenly spread over it.

    Args:
        images: The set.
        count: How many at most.
        side: Pixels along each side.

    Raises:
        ValueError: If an image cannot be read.
    """
    places = np.unique(np.linspace(0, len(images) - 1, min(count, len(images))).round().astype(int))
    return [
        Thumbnail(
            Path(images.source.name(images.chosen[place])).name,
            resize_and_crop(images.image(int(place)), side),
        )
        for place in places
    ]


def try_thumbnails(images: CalibrationSet) -> list[Thumbnail]:
    """The same, or none with a line in the log, where an image is not there any more."""
    try:
        return thumbnails(images)
    except (OSError, ValueError) as error:
        logger.warning('no thumbnails of the calibration images: %s', error)
        return []
