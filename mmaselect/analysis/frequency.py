# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Feature maps split into low and high frequencies, and shown as pictures."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mmaselect.checks import choice
from mmaselect.selection.criteria.spectrum import check_band, frequency_distance

#: How a map of many channels becomes a picture.
VIEWS = ('pca', 'mean')


def split_frequencies(
    feature: Tensor, cutoff: float = 0.15, shape: str = 'radial'
) -> tuple[Tensor, Tensor]:
    """The low- and the high-frequency part of feature maps; they sum to the maps.

    Args:
        feature: (B, C, H, W), any float dtype.
        cutoff: Frequencies above it are high, in cycles per token, as in
            :func:`~mmaselect.selection.criteria.high_frequency_ratio.high_frequency_ratio`. The
            map's mean is low.
        shape: ``'radial'`` or ``'square'``.

    Returns:
        Two float32 tensors (B, C, H, W).

    Raises:
        ValueError: If ``cutoff`` or ``shape`` is not allowed.
    """
    check_band(cutoff, shape, include_dc=False, dims='2d')
    feature = feature.float()
    size = tuple(feature.shape[-2:])
    spectrum = torch.fft.rfft2(feature)
    is_low = frequency_distance(size, shape).to(spectrum.device) <= cutoff + 1e-9
    low = torch.fft.irfft2(spectrum * is_low, s=size)
    return low, feature - low


def picture(feature: Tensor, view: str = 'pca', basis: Tensor | None = None) -> np.ndarray:
    """A feature map as an RGB picture.

    Args:
        feature: (C, H, W), float.
        view: ``'pca'``, the first three principal components over the map's own tokens as red,
            green and blue; or ``'mean'``, the mean over channels in gray.
        basis: (C, 3), from :func:`principal_components`; of the map itself if None.

    Returns:
        (H, W, 3) uint8: each component spans 0 to 255.

    Raises:
        ValueError: If ``view`` is neither of the two.
    """
    choice('view', view, VIEWS)
    if view == 'mean':
        values = feature.float().mean(0, keepdim=True).expand(3, -1, -1)
    else:
        basis = principal_components(feature) if basis is None else basis
        values = torch.einsum('chw,ck->khw', feature.float(), basis)
    low = values.amin((1, 2), keepdim=True)
    span = values.amax((1, 2), keepdim=True) - low
    # A constant component is gray, not noise blown up by a span of rounding.
    scaled = torch.where(span > 1e-6 * low.abs().clamp(min=1e-6), (values - low) / span, 0.5)
    return (255 * scaled).round().byte().permute(1, 2, 0).cpu().numpy()


def principal_components(feature: Tensor) -> Tensor:
    """First three principal directions over the tokens of a map (C, H, W): (C, 3).

    The sign of each is such that its largest entry is positive: the same map always gives the same
    colors. Directions that a map of few tokens or channels lacks are zero.
    """
    tokens = feature.float().flatten(1).T
    tokens = tokens - tokens.mean(0)
    _, _, directions = torch.linalg.svd(tokens, full_matrices=False)
    basis = directions[:3].T
    largest = basis.gather(0, basis.abs().argmax(0, keepdim=True))
    basis = basis * torch.where(largest < 0, -1.0, 1.0)
    return torch.nn.functional.pad(basis, (0, 3 - basis.shape[1]))


def high_share(low: Tensor, high: Tensor) -> float:
    """Energy of the high part over that of low and high, without the mean: of maps (C, H, W).

    The total over channels: HFR with ``reduction='total'``.
    """
    part = float(high.square().sum())
    rest = float((low - low.mean((1, 2), keepdim=True)).square().sum())
    return part / (part + rest) if part + rest > 0 else 0.0
