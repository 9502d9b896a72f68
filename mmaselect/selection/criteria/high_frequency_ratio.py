# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""High-frequency ratio: the share of a feature map's spectrum that is high-frequency."""

from typing import Any

from torch import Tensor

from mmaselect.checks import choice
from mmaselect.registry import CRITERIA
from mmaselect.selection.criteria.base import PerImageCriterion
from mmaselect.selection.criteria.spectrum import (
    ROUNDING,
    band_sums,
    band_weights,
    check_band,
    half_spectrum,
    power,
    share,
    transform_size,
    zero_frequency,
)

MEASURES = ('power', 'amplitude')
REDUCTIONS = ('channel_mean', 'total')


def high_frequency_ratio(
    feature: Tensor,
    cutoff: float = 0.15,
    shape: str = 'radial',
    measure: str = 'power',
    include_dc: bool = False,
    reduction: str = 'channel_mean',
    dims: str = '2d',
) -> Tensor:
    """Share of each feature map's spectrum that lies above a cut-off frequency.

    The options are the choices that "A-SelecT: Automatic Timestep Selection for Diffusion
    Transformer Representation Learning" (arXiv 2603.25758) leaves open. The definition that its
    authors' public configuration is nearest to is
    :func:`~mmaselect.selection.criteria.paper_hfr.paper_hfr`.

    A map without energy holds no detail: where the denominator is zero, or a constant map leaves
    nothing but float32 rounding next to an excluded mean, the ratio is 0. White noise scores the
    high band's share of all frequencies.

    Args:
        feature: (B, C, H, W), any float dtype; transformed in float32.
        cutoff: Frequencies above it are high. In cycles per sample: the sampling rate is 1, the
            Nyquist frequency 0.5. Defaults to 0.15.
        shape: What is compared with the cut-off: ``'radial'``, the length of the frequency vector,
            or ``'square'``, its largest component. No difference in one dimension. Defaults to
            ``'radial'``.
        measure: What is summed: ``'power'``, the squared magnitude, or ``'amplitude'``, the
            magnitude. Defaults to ``'power'``.
        include_dc: Whether the zero frequency, the map's mean, counts in the denominator.
            Defaults to False.
        reduction: ``'channel_mean'``, one ratio per channel, then their mean (a few channels with
            massive activations cannot drown the rest), or ``'total'``, one ratio of sums over
            channels. With ``dims='channels'`` tokens take the place of channels here. Defaults to
            ``'channel_mean'``.
        dims: What is transformed: ``'2d'``, the token grid, ``'tokens'``, the tokens in row-major
            order, or ``'channels'``, the channels of each token. Defaults to ``'2d'``.

    Returns:
        (B,), between 0 and 1. nan for an image whose feature is not finite (or so large, above 1e15
        or so, that its power is not).

    Raises:
        ValueError: If an option has none of its values, or if the cut-off leaves no low or no high
            frequency for maps of this size.

    Example:
        >>> import torch
        >>> board = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(4, 4)
        >>> high_frequency_ratio(board.expand(1, 3, 8, 8))
        tensor([1.])
        >>> # 1/8 cycle per token:
        >>> wave = torch.cos(torch.arange(8) * torch.pi / 4).expand(1, 3, 8, 8)
        >>> high_frequency_ratio(wave + board).round(decimals=3)
        tensor([0.6670])
    """
    choice('measure', measure, MEASURES)
    choice('reduction', reduction, REDUCTIONS)
    check_band(cutoff, shape, include_dc, dims)
    size = transform_size(feature, dims)
    high, every = band_weights(size, cutoff, shape, include_dc, feature.device)

    spectrum = half_spectrum(feature, dims)
    density = power(spectrum) if measure == 'power' else spectrum.abs()
    part, whole = band_sums(density, high, every)
    mean = zero_frequency(density, len(size))
    samples = feature.shape[1:].numel() // part.shape[1]
    if measure == 'power':
        floor = mean * (ROUNDING**2 / samples)
    else:
        # Rounding of that energy, spread evenly, has sqrt(samples) times the amplitude.
        floor = mean * (ROUNDING / samples**0.5)
    if reduction == 'total':
        return share(part.sum(1), whole.sum(1), floor.sum(1))
    return share(part, whole, floor).mean(1)


@CRITERIA.register_module()
class HighFrequencyRatio(PerImageCriterion):
    """Mean over images of :func:`high_frequency_ratio`. Needs neither labels nor a second noise
    draw. The paper's own criterion is :class:`~mmaselect.selection.criteria.paper_hfr.PaperHFR`.

    On a model trained for a short time it may rise toward pure noise, whose spectrum is flat:
    :class:`~mmaselect.selection.criteria.cross_spectrum.CrossSpectrumHFR` cancels what the noise
    put into the feature.

    Args:
        cutoff: See :func:`high_frequency_ratio`, as for all that follow. Defaults to 0.15.
        shape: ``'radial'`` or ``'square'``. Defaults to ``'radial'``.
        measure: ``'power'`` or ``'amplitude'``. Defaults to ``'power'``.
        include_dc: Whether the map's mean counts in the denominator. Defaults to False.
        reduction: ``'channel_mean'`` or ``'total'``. Defaults to ``'channel_mean'``.
        dims: ``'2d'``, ``'tokens'`` or ``'channels'``. Defaults to ``'2d'``.
        **kwargs: Arguments of :class:`torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> criterion = HighFrequencyRatio(cutoff=0.25)
        >>> criterion.update(torch.ones(2, 3, 8, 8, dtype=torch.float16))
        >>> result = criterion.compute()
        >>> result['score'].item(), result['count'].item()
        (0.0, 2)
    """

    unit = 'A score is the share of energy that lies in high frequencies, 0 to 1.'

    def __init__(
        self,
        cutoff: float = 0.15,
        shape: str = 'radial',
        measure: str = 'power',
        include_dc: bool = False,
        reduction: str = 'channel_mean',
        dims: str = '2d',
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        choice('measure', measure, MEASURES)
        choice('reduction', reduction, REDUCTIONS)
        check_band(cutoff, shape, include_dc, dims)
        self.options: dict[str, Any] = {
            'cutoff': cutoff,
            'shape': shape,
            'measure': measure,
            'include_dc': include_dc,
            'reduction': reduction,
            'dims': dims,
        }

    def per_image(self, *features: Tensor) -> Tensor:
        (feature,) = features
        return high_frequency_ratio(feature, **self.options)
