# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""What tokens hold of their position, estimated from images that share nothing else."""

from __future__ import annotations

import numpy as np
from torch import Tensor

#: Images from which the part that depends on position alone is estimated. On the shipped model 16
#: and 32 give the same pictures, and 4 leave traces of single images.
ENOUGH_FOR_POSITION = 16
#: Luminance and the two chroma axes of natural images, as columns over (R, G, B): their colors
#: differ along the first far more than along the others.
_COLOR_AXES = np.array([[1.0, 0.5, 0.3], [1.0, 0.0, -0.6], [1.0, -0.5, 0.3]])
#: Mean and standard deviation of the pixels.
_MEAN, _DEVIATION = 120.0, 55.0


def colored_noise(count: int, size: tuple[int, int], seed: int = 0) -> np.ndarray:
    """Images with the spectrum of photographs (amplitude 1 / frequency) and nothing on them.

    Args:
        count: How many.
        size: Height and width, in pixels.
        seed: Seed of the drawing.

    Returns:
        ndarray: (count, H, W, 3), uint8, RGB.

    Example:
        >>> from mmaselect.look.position import colored_noise
        >>> colored_noise(2, (24, 32)).shape
        (2, 24, 32, 3)
    """
    generator = np.random.default_rng(seed)
    vertical, horizontal = np.fft.fftfreq(size[0])[:, None], np.fft.fftfreq(size[1])[None]
    frequency = np.hypot(vertical, horizontal)
    frequency[0, 0] = 1 / max(size)
    white = generator.normal(size=(count, 3, *size))
    planes = np.fft.ifft2(np.fft.fft2(white) / frequency).real
    pixels = np.einsum('ca,nahw->nhwc', _COLOR_AXES, planes)
    pixels = (pixels - pixels.mean()) / pixels.std() * _DEVIATION + _MEAN
    return pixels.round().clip(0, 255).astype(np.uint8)


def position_map(maps: Tensor) -> Tensor:
    """The mean map over images, without its mean over tokens.

    Args:
        maps: (images, C, h, w).

    Returns:
        Tensor: (C, h, w), with a mean of zero over h and w.
    """
    mean = maps.mean(0)
    return mean - mean.mean((1, 2), keepdim=True)
