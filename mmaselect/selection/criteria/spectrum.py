# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Discrete spectra of feature maps, and which of their frequencies are high.

Frequencies are in cycles per sample (per token, or per channel with ``dims='channels'``): the
sampling rate is 1 and the Nyquist frequency 0.5. The input is real, so only half of the spectrum is
computed, and each frequency whose mirror image is missing from it weighs double.
"""

from functools import lru_cache

import torch
from torch import Tensor

from mmaselect.checks import choice, flag

SHAPES = ('radial', 'square')
DIMS = ('2d', 'tokens', 'channels')

#: Energy next to a mean of amplitude A counts as none below (ROUNDING * A)^2: there, a float32
#: transform of a constant map leaves nothing but rounding.
ROUNDING = 8 * torch.finfo(torch.float32).eps


def check_band(cutoff: float, shape: str, include_dc: bool, dims: str) -> None:
    """Raise on a band that no spectrum has.

    Args:
        cutoff: In cycles per sample.
        shape: One of :data:`SHAPES`.
        include_dc: A bool.
        dims: One of :data:`DIMS`.

    Raises:
        ValueError: If one of them is out of range.
    """
    if isinstance(cutoff, bool) or not isinstance(cutoff, int | float) or not 0 < cutoff < 0.5:
        raise ValueError(
            'cutoff must be a number between 0 and 0.5 (the Nyquist frequency; the sampling rate '
            f'is 1), but got {cutoff!r}.'
        )
    choice('shape', shape, SHAPES)
    flag('include_dc', include_dc)
    choice('dims', dims, DIMS)


def half_spectrum(feature: Tensor, dims: str = '2d') -> Tensor:
    """The non-redundant half of the spectrum of real feature maps, in float32 precision.

    Args:
        feature: (B, C, H, W), any float dtype.
        dims: What is transformed.

            - ``'2d'``: the token grid of each channel: (B, C, H, W // 2 + 1).
            - ``'tokens'``: each channel's tokens in row-major order: (B, C, H * W // 2 + 1).
            - ``'channels'``: each token's channels: (B, H, W, C // 2 + 1).

    Returns:
        Complex tensor, not normalized; the transformed axes come last.
    """
    feature = feature.to(torch.float32)
    if dims == '2d':
        # MKL refuses expanded tensors in PyTorch 2.6.
        return torch.fft.rfft2(feature.contiguous())
    if dims == 'tokens':
        return torch.fft.rfft(feature.flatten(2))
    return torch.fft.rfft(feature, dim=1).movedim(1, -1)


def transform_size(feature: Tensor, dims: str = '2d') -> tuple[int, ...]:
    """Number of samples along each transformed axis of a feature map (B, C, H, W).

    Args:
        feature: (B, C, H, W).
        dims: See :func:`half_spectrum`.

    Returns:
        (H, W), (H * W,) or (C,).
    """
    _, channels, height, width = feature.shape
    return {'2d': (height, width), 'tokens': (height * width,), 'channels': (channels,)}[dims]


def frequency_distance(size: tuple[int, ...], shape: str = 'radial') -> Tensor:
    """Distance from zero of every frequency of a half spectrum.

    Args:
        size: Samples along each axis; the last axis is the halved one.
        shape: ``'radial'``, the length of the frequency vector, or ``'square'``, its largest
            component.

    Returns:
        Float64 tensor (..., size[-1] // 2 + 1), in cycles per sample.

    Example:
        >>> frequency_distance((4,)).tolist()
        [0.0, 0.25, 0.5]
        >>> frequency_distance((2, 4), shape='square').tolist()
        [[0.0, 0.25, 0.5], [0.5, 0.5, 0.5]]
    """
    axes = [torch.fft.fftfreq(n, dtype=torch.float64) for n in size[:-1]]
    axes.append(torch.fft.rfftfreq(size[-1], dtype=torch.float64))
    grid = torch.stack(torch.meshgrid(*axes, indexing='ij'))
    return torch.linalg.vector_norm(grid, ord=2 if shape == 'radial' else torch.inf, dim=0)


@lru_cache(maxsize=256)
def band_weights(
    size: tuple[int, ...], cutoff: float, shape: str, include_dc: bool, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Weights that sum a half spectrum over its high, and over all, frequencies.

    A frequency is high if its distance from zero is larger than ``cutoff``. The weights hold the
    factor 1 / prod(size), so that ``(weights * spectrum.abs() ** 2).sum()`` is an energy: over all
    frequencies it equals the sum of squares of the map (Parseval).

    Args:
        size: Samples along each transformed axis.
        cutoff: In cycles per sample.
        shape: See :func:`frequency_distance`.
        include_dc: Whether the zero frequency (the map's mean) is among "all".
        device: Where the weights are wanted.

    Returns:
        Two float32 tensors (..., size[-1] // 2 + 1): high frequencies, all frequencies. They are
        cached: do not write into them.

    Raises:
        ValueError: If the cut-off leaves no low or no high frequency for maps of this size.

    Example:
        >>> high, every = band_weights((4,), 0.3, 'radial', False, torch.device('cpu'))
        >>> high.tolist(), every.tolist()
        ([0.0, 0.0, 0.25], [0.0, 0.5, 0.25])
    """
    # A cached tensor made in inference mode could not be used under autograd later.
    with torch.inference_mode(False):
        distance = frequency_distance(size, shape)
        # 3/20 and 4/20 must make 1/4 whatever the rounding: what lies on the cut-off is low.
        high = distance > cutoff + 1e-9
        every = torch.ones_like(high)
        if not include_dc:
            every[distance == 0] = False
        for band, members in (('high', high), ('low', every & ~high)):
            if not members.any():
                present = sorted(set(distance[every].tolist()))
                found = f'{present[0]:.3g} to {present[-1]:.3g}' if present else 'none'
                raise ValueError(
                    f'cutoff={cutoff} leaves no {band} frequency ({shape}, '
                    f'include_dc={include_dc}) in a spectrum of size {size}, whose frequencies '
                    f'in cycles per sample are: {found}. Use another cutoff, or larger images.'
                )
        last = torch.arange(distance.shape[-1])
        mirrored = (last > 0) & (2 * last != size[-1])
        weight = (1.0 + mirrored) / distance.new_tensor(size).prod()
        return (
            (weight * high).to(device, torch.float32),
            (weight * every).to(device, torch.float32),
        )


def band_sums(density: Tensor, high: Tensor, every: Tensor) -> tuple[Tensor, Tensor]:
    """Sum a density over the high, and over all, frequencies of its half spectrum.

    Args:
        density: (B, ..., frequencies).
        high: Weights of the high frequencies, from :func:`band_weights`.
        every: Weights of all frequencies.

    Returns:
        Two tensors (B, S), one column for each spectrum of an image.
    """
    # Products and sums, not a matrix product: autocast and TF32 would round that one.
    axes = tuple(range(-high.ndim, 0))
    return (density * high).sum(axes).flatten(1), (density * every).sum(axes).flatten(1)


def power(spectrum: Tensor) -> Tensor:
    """Squared magnitude of a complex tensor, without the square root that ``abs`` takes."""
    return torch.addcmul(spectrum.real.square(), spectrum.imag, spectrum.imag)


def zero_frequency(spectrum: Tensor, ndim: int) -> Tensor:
    """The zero frequency of each spectrum.

    Args:
        spectrum: (B, ..., frequencies).
        ndim: Number of its frequency axes.

    Returns:
        (B, S), one column for each spectrum of an image.
    """
    for _ in range(ndim):
        spectrum = spectrum[..., 0]
    return spectrum.flatten(1)


def share(part: Tensor, whole: Tensor, floor: Tensor) -> Tensor:
    """Ratio of two tensors: 0 where ``whole <= floor``, nan where ``whole`` is not finite."""
    # Dividing by nan keeps nan; an infinite whole would pass for a share of 0.
    whole = torch.where(whole.isinf(), torch.nan, whole)
    return torch.where(whole <= floor, 0.0, part / whole)
