# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Copies among images, whichever file, size or compression they have."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

#: Side of the thumbnails by which images are compared, in pixels.
SIDE = 16
#: Images are copies if their thumbnails differ by less than this share of their contrast. Four
#: photographs and their JPEG of quality 50 lie at 0.01 to 0.03, and half as large at 0.02 to 0.06.
#: Different images lie above: the nearest of 367 frames of a street video at 0.05, of 400 digits at
#: 0.2, and of 400 pictures of CIFAR-10 at 0.7.
SHARE = 0.04
#: Number of images that are compared with all others at once.
_CHUNK = 256


def thumbnail(image: np.ndarray) -> bytes:
    """What an image is compared by.

    Args:
        image: (H, W, 3) uint8, RGB.
    """
    small = Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BOX)
    return np.asarray(small).tobytes()


def count_different(thumbnails: Sequence[bytes]) -> int:
    """Number of images, each group of copies counted once.

    A difference is compared with the contrast of the images, so that pale images are not taken for
    one another; images of one color are copies only if they are equal.

    Args:
        thumbnails: One for each image, by :func:`thumbnail`.
    """
    distinct = np.array([np.frombuffer(one, np.uint8) for one in dict.fromkeys(thumbnails)])
    values = distinct.astype(np.float64)
    contrast = values.reshape(len(values), -1, 3).std(1).mean(1)
    is_copy = np.zeros(len(values), bool)
    for start in range(0, len(values), _CHUNK):
        part = values[start : start + _CHUNK]
        # |a - b|^2 in one product of matrices: each image with all before it.
        squares = (part**2).sum(1)[:, None] + (values**2).sum(1) - 2 * part @ values.T
        rms = np.sqrt(np.maximum(squares, 0) / values.shape[1])
        limit = SHARE * np.minimum(contrast[start : start + _CHUNK, None], contrast)
        for row, near in enumerate(rms < limit):
            place = start + row
            is_copy[place] = bool((near[:place] & ~is_copy[:place]).any())
    return int((~is_copy).sum())
