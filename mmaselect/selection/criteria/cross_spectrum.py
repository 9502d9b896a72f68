# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""High-frequency ratio of what two noise draws of an image have in common."""

from typing import Any, ClassVar

from torch import Tensor

from mmaselect.checks import choice
from mmaselect.registry import CRITERIA
from mmaselect.selection.criteria.base import PerImageCriterion
from mmaselect.selection.criteria.high_frequency_ratio import REDUCTIONS
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

DENOMINATORS = ('power', 'signal')
POOLINGS = ('image_mean', 'ratio_of_sums')


def cross_spectrum_terms(
    first: Tensor,
    second: Tensor,
    cutoff: float,
    shape: str,
    include_dc: bool,
    denominator: str,
    dims: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Numerator, denominator and floor of the ratio, of each spectrum of each image.

    Args:
        first: (B, C, H, W).
        second: (B, C, H, W).
        cutoff: See :func:`cross_spectrum_hfr`, as for all that follow.
        shape: See there.
        include_dc: See there.
        denominator: See there.
        dims: See there.

    Returns:
        Three float32 tensors (B, S): the energy that the draws have in common above the cut-off,
        the energy that it is a share of, and the energy below which that one is rounding.
    """
    size = transform_size(first, dims)
    high, every = band_weights(size, cutoff, shape, include_dc, first.device)
    one, two = half_spectrum(first, dims), half_spectrum(second, dims)
    # Re(one * conj(two)), without the imaginary part.
    part, common = band_sums((one.real * two.real).addcmul(one.imag, two.imag), high, every)
    density = (power(one) + power(two)) / 2
    _, whole = band_sums(density, high, every)
    samples = first.shape[1:].numel() // part.shape[1]
    floor = zero_frequency(density, len(size)) * (ROUNDING**2 / samples)
    return part, whole if denominator == 'power' else common, floor


def cross_spectrum_hfr(
    first: Tensor,
    second: Tensor,
    cutoff: float = 0.15,
    shape: str = 'radial',
    include_dc: bool = False,
    reduction: str = 'channel_mean',
    denominator: str = 'power',
    dims: str = '2d',
) -> Tensor:
    """Share of each image's spectrum that is high-frequency and the same in two noise draws.

    With F1 and F2 the spectra of two feature maps of one image, from independent noise, the
    expectation of Re(F1 conj(F2)) over the noise is the power of the mean feature: what the noise
    put there cancels, what the image (and the model's fixed pattern, such as its position
    embedding) put there stays. The sum over high frequencies of it, over the sum of (|F1|^2 +
    |F2|^2) / 2 over all, falls when noise covers the image, where the plain ratio can rise.

    Two equal draws give the plain ratio of powers. Independent noise scores 0 on average; single
    images then scatter about 0 on both sides.

    Args:
        first: (B, C, H, W), the feature of one noise draw. Any float dtype; transformed in float32.
        second: (B, C, H, W), that of an independent draw for the same images at the same timestep.
        cutoff: See :func:`~mmaselect.selection.criteria.high_frequency_ratio.high_frequency_ratio`,
            as for ``shape``, ``include_dc``, ``reduction`` and ``dims``. Defaults to 0.15.
        shape: ``'radial'`` or ``'square'``. Defaults to ``'radial'``.
        include_dc: Whether the map's mean counts in the denominator. Defaults to False.
        reduction: ``'channel_mean'`` or ``'total'``. Defaults to ``'channel_mean'``.
        denominator: What the ratio is a share of.

            - ``'power'``: the draws' whole power, signal and noise. The ratio lies between -1 and
              1, and is low both for a smooth signal and for a drowned one.
            - ``'signal'``: the cross spectrum itself, over all frequencies. Says how the signal is
              spread, no matter how weak it is. Unstable for single images: without common energy
              (at or below 0) the ratio is 0, and little more makes it as large as one likes.

            Defaults to ``'power'``.
        dims: ``'2d'``, ``'tokens'`` or ``'channels'``. Defaults to ``'2d'``.

    Returns:
        (B,). nan for an image whose features are not finite.

    Raises:
        ValueError: If an option has none of its values, if the shapes differ, or if the cut-off
            leaves no low or no high frequency for maps of this size.

    Example:
        >>> import torch
        >>> board = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(4, 4).expand(1, 3, 8, 8)
        >>> cross_spectrum_hfr(board, board)
        tensor([1.])
        >>> cross_spectrum_hfr(board, -board)
        tensor([-1.])
    """
    choice('reduction', reduction, REDUCTIONS)
    choice('denominator', denominator, DENOMINATORS)
    check_band(cutoff, shape, include_dc, dims)
    if first.shape != second.shape:
        raise ValueError(
            'The two draws must be of the same images, but their features have shapes '
            f'{tuple(first.shape)} and {tuple(second.shape)}.'
        )
    part, whole, floor = cross_spectrum_terms(
        first, second, cutoff, shape, include_dc, denominator, dims
    )
    if reduction == 'total':
        return share(part.sum(1), whole.sum(1), floor.sum(1))
    return share(part, whole, floor).mean(1)


@CRITERIA.register_module()
class CrossSpectrumHFR(PerImageCriterion):
    """Mean of :func:`cross_spectrum_hfr` over images.

    Wants two noise draws of each image, and no labels.

    Args:
        cutoff: See :func:`cross_spectrum_hfr`, as for all but the last. Defaults to 0.15.
        shape: ``'radial'`` or ``'square'``. Defaults to ``'radial'``.
        include_dc: Whether the map's mean counts in the denominator. Defaults to False.
        reduction: ``'channel_mean'`` or ``'total'``. Defaults to ``'channel_mean'``.
        denominator: ``'power'`` or ``'signal'``. Defaults to ``'power'``.
        dims: ``'2d'``, ``'tokens'`` or ``'channels'``. Defaults to ``'2d'``.
        pooling: How images make one score.

            - ``'image_mean'``: mean of their ratios. All images weigh the same.
            - ``'ratio_of_sums'``: ratio of their sums: images with more energy weigh more. Asks for
              ``reduction='total'``, and is the one for ``denominator='signal'``.

            Defaults to ``'image_mean'``.
        **kwargs: Arguments of :class:`torchmetrics.Metric`.

    Raises:
        ValueError: If an option has none of its values, or does not go with another.

    Example:
        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> image = torch.randn(64, 8, 8, 8)
        >>> def draw():
        ...     return image + torch.randn(64, 8, 8, 8)
        >>> criterion = CrossSpectrumHFR()
        >>> criterion.update(draw(), draw())
        >>> plain = cross_spectrum_hfr(image, image).mean()
        >>> # Half of the power is noise.
        >>> bool((criterion.compute()['score'] - plain / 2).abs() < 0.02)
        True
    """

    draws: ClassVar[int] = 2

    def __init__(
        self,
        cutoff: float = 0.15,
        shape: str = 'radial',
        include_dc: bool = False,
        reduction: str = 'channel_mean',
        denominator: str = 'power',
        dims: str = '2d',
        pooling: str = 'image_mean',
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        choice('reduction', reduction, REDUCTIONS)
        choice('denominator', denominator, DENOMINATORS)
        choice('pooling', pooling, POOLINGS)
        check_band(cutoff, shape, include_dc, dims)
        if pooling == 'ratio_of_sums' and reduction != 'total':
            raise ValueError(
                "pooling='ratio_of_sums' sums over channels as well as over images: use it with "
                f"reduction='total', not {reduction!r}."
            )
        if denominator == 'signal' and pooling != 'ratio_of_sums':
            raise ValueError(
                "denominator='signal' can be near zero or negative for a single image, and a mean "
                "of such ratios says nothing: use pooling='ratio_of_sums' with reduction='total'."
            )
        self.pooling = pooling
        self.band: dict[str, Any] = {
            'cutoff': cutoff,
            'shape': shape,
            'include_dc': include_dc,
            'denominator': denominator,
            'dims': dims,
        }
        self.reduction = reduction

    def per_image(self, *features: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        first, second = features
        if self.pooling == 'image_mean':
            return cross_spectrum_hfr(first, second, reduction=self.reduction, **self.band)
        part, whole, floor = cross_spectrum_terms(first, second, **self.band)
        silent = whole.abs() <= floor
        return part.masked_fill(silent, 0).sum(1), whole.masked_fill(silent, 0).sum(1)
