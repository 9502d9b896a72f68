# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Corrupted images, in the manner of the common-corruptions benchmarks (arXiv 1903.12261)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from mmaselect.checks import choice

NUM_SEVERITIES = 3


def _noise(image: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Gaussian noise, standard deviation as a share of half of the range (of [-1, 1])."""
    deviation = (0.15, 0.3, 0.5)[severity - 1] * 127.5
    return image + deviation * torch.randn(image.shape, generator=generator)


def _low_light(image: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Few photons, brightened as a camera does: shot noise, and read noise of 1.5 photons."""
    photons = (60.0, 25.0, 10.0)[severity - 1]
    counted = torch.poisson(image / 255 * photons, generator=generator)
    read = 1.5 * torch.randn(image.shape, generator=generator)
    return (counted + read) / photons * 255


def _blur(image: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Gaussian blur, in shares of the shorter side."""
    sigma = (0.02, 0.035, 0.055)[severity - 1] * min(image.shape[1:])
    size = 2 * max(1, round(3 * sigma)) + 1
    return F.gaussian_blur(image, [size, size], [sigma, sigma])


def _jpeg(image: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """JPEG compression."""
    return F.jpeg(image.round().to(torch.uint8), (30, 15, 7)[severity - 1]).float()


def _low_resolution(image: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Fewer pixels, enlarged again."""
    share = (0.75, 0.5, 0.35)[severity - 1]
    small = [max(1, round(side * share)) for side in image.shape[1:]]
    reduced = F.resize(image, small, antialias=True)
    return F.resize(
        reduced, list(image.shape[1:]), interpolation=InterpolationMode.BICUBIC, antialias=True
    )


def _impulse(image: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Salt and pepper: pixels that are lost to black or white, half of them each."""
    share = (0.05, 0.15, 0.3)[severity - 1]
    lost = torch.rand(image.shape[1:], generator=generator) < share
    white = torch.rand(image.shape[1:], generator=generator) < 0.5
    return torch.where(lost, torch.where(white, 255.0, 0.0), image)


def _contrast(image: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Less contrast, around the mean of the image."""
    share = (0.5, 0.3, 0.15)[severity - 1]
    mean = image.mean()
    return mean + share * (image - mean)


def _motion_blur(image: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Motion along a line of random direction, its length in shares of the shorter side."""
    length = (0.12, 0.22, 0.35)[severity - 1] * min(image.shape[1:])
    angle = float(torch.rand((), generator=generator)) * torch.pi
    # Bilinear shifts of the whole image along the line, four for each pixel of its length.
    places = torch.linspace(-length / 2, length / 2, max(2, round(4 * length)))
    height, width = image.shape[1:]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing='ij')
    centers = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], -1)
    shift = torch.tensor([2 * np.cos(angle) / width, 2 * np.sin(angle) / height])
    grids = centers + (places[:, None] * shift)[:, None, None]
    seen = torch.nn.functional.grid_sample(
        image.expand(len(places), -1, -1, -1),
        grids.to(image),
        padding_mode='border',
        align_corners=False,
    )
    return seen.mean(0)


CORRUPTIONS: dict[str, Callable[[Tensor, int, torch.Generator], Tensor]] = {
    'noise': _noise,
    'low_light': _low_light,
    'blur': _blur,
    'jpeg': _jpeg,
    'low_resolution': _low_resolution,
    'impulse': _impulse,
    'contrast': _contrast,
    'motion_blur': _motion_blur,
}


def corrupt(image: np.ndarray, name: str, severity: int, seed: int) -> np.ndarray:
    """Corrupt an image.

    Args:
        image: (H, W, 3) uint8, RGB.
        name: ``'noise'``, ``'low_light'``, ``'blur'``, ``'jpeg'``, ``'low_resolution'``,
            ``'impulse'``, ``'contrast'`` or ``'motion_blur'``.
        severity: 1 (weak) to 3 (strong).
        seed: Seed of what is random.

    Returns:
        (H, W, 3) uint8, RGB.

    Raises:
        ValueError: If the name or the severity has none of these values.

    Example:
        >>> import numpy as np
        >>> grey = np.full((8, 8, 3), 128, np.uint8)
        >>> bool((corrupt(grey, 'blur', 3, seed=0) == 128).all())
        True
    """
    choice('corruption', name, CORRUPTIONS)
    if severity not in range(1, NUM_SEVERITIES + 1):
        raise ValueError(f'severity must be 1 to {NUM_SEVERITIES}, got {severity!r}')
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float()
    changed = CORRUPTIONS[name](pixels, severity, torch.Generator().manual_seed(seed))
    return changed.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
