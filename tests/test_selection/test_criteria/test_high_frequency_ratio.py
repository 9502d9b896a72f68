# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
import math

import numpy as np
import pytest
import torch
from pairwise import combinations

from mmaselect.registry import CRITERIA
from mmaselect.selection.criteria import HighFrequencyRatio, high_frequency_ratio


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def reference(image, cutoff, shape, measure, include_dc, reduction, dims):
    """HFR of one feature map (C, H, W): numpy's full spectrum, one frequency at a time."""
    _, height, width = image.shape
    if dims == '2d':
        signals = list(image)
    elif dims == 'tokens':
        signals = [channel.reshape(-1) for channel in image]
    else:
        signals = [image[:, y, x] for y in range(height) for x in range(width)]
    parts, wholes = [], []
    for signal in signals:
        spectrum = np.fft.fftn(signal.astype(np.float64))
        part = whole = 0.0
        for index in np.ndindex(*spectrum.shape):
            frequency = [
                abs(np.fft.fftfreq(n)[i]) for n, i in zip(signal.shape, index, strict=True)
            ]
            distance = max(frequency) if shape == 'square' else math.hypot(*frequency)
            value = abs(spectrum[index]) ** (2 if measure == 'power' else 1)
            if distance > cutoff:
                part += value
            if include_dc or any(index):
                whole += value
        parts.append(part)
        wholes.append(whole)
    if reduction == 'total':
        return sum(parts) / sum(wholes)
    return np.mean([p / w for p, w in zip(parts, wholes, strict=True)])


NAMES = ('cutoff', 'shape', 'measure', 'include_dc', 'reduction', 'dims')


@pytest.mark.parametrize(
    ('size', *NAMES),
    combinations(
        [(8, 8), (7, 9)],
        [0.15, 0.35],
        ['radial', 'square'],
        ['power', 'amplitude'],
        [True, False],
        ['channel_mean', 'total'],
        ['2d', 'tokens', 'channels'],
    ),
)
def test_equals_numpy_spectrum_summed_one_frequency_at_a_time(
    size, cutoff, shape, measure, include_dc, reduction, dims
):
    options = dict(zip(NAMES, (cutoff, shape, measure, include_dc, reduction, dims), strict=True))
    feature = randn(2, 9, *size) * torch.linspace(0.1, 3, 9)[:, None, None] + 0.5
    expected = [reference(image, **options) for image in feature.numpy()]
    ratio = high_frequency_ratio(feature, **options)
    assert ratio.shape == (2,)
    np.testing.assert_allclose(ratio.numpy(), expected, rtol=2e-5)


@pytest.mark.parametrize('size', [(4, 16), (5, 12), (1, 32), (6, 7)])
def test_equals_numpy_spectrum_on_rectangles(size):
    options = dict(zip(NAMES, (0.25, 'radial', 'power', False, 'channel_mean', '2d'), strict=True))
    feature = randn(2, 3, *size)
    expected = [reference(image, **options) for image in feature.numpy()]
    np.testing.assert_allclose(high_frequency_ratio(feature, **options), expected, rtol=2e-5)


@pytest.mark.parametrize('shape', ['radial', 'square'])
@pytest.mark.parametrize('cutoff', [0.15, 0.25, 0.35])
def test_white_noise_scores_the_share_of_frequencies(shape, cutoff):
    size = (16, 12)
    axes = np.meshgrid(*(np.abs(np.fft.fftfreq(n)) for n in size), indexing='ij')
    distance = np.maximum(*axes) if shape == 'square' else np.hypot(*axes)
    criterion = HighFrequencyRatio(cutoff=cutoff, shape=shape, reduction='total', include_dc=True)
    criterion.update(randn(64, 64, *size))
    result = criterion.compute()
    expected = (distance > cutoff).mean()
    assert abs(result['score'] - expected) < 5 * result['sem']
    assert result['sem'] < 1e-3


@pytest.mark.parametrize(
    ('size', 'measure', 'dims', 'include_dc', 'value'),
    combinations(
        [(8, 8), (7, 9), (13, 11), (1, 16)],
        ['power', 'amplitude'],
        ['2d', 'tokens', 'channels'],
        [True, False],
        [0.0, 0.1, 1234.567],
    ),
)
def test_constant_map_scores_zero(size, measure, dims, include_dc, value):
    feature = torch.full((2, 11, *size), value)
    ratio = high_frequency_ratio(feature, measure=measure, dims=dims, include_dc=include_dc)
    np.testing.assert_allclose(ratio, 0, atol=1e-6)


def test_small_detail_on_a_large_mean_is_not_taken_for_rounding():
    board = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(4, 4).expand(1, 2, 8, 8)
    ratio = high_frequency_ratio(1.0 + 1e-4 * board, include_dc=False)
    np.testing.assert_allclose(ratio, 1, rtol=1e-3)


def test_silent_channel_counts_as_zero_in_the_channel_mean_and_not_in_the_total():
    board = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(4, 4)
    feature = torch.stack([board, torch.zeros(8, 8)])[None]
    assert high_frequency_ratio(feature, reduction='channel_mean').item() == pytest.approx(0.5)
    assert high_frequency_ratio(feature, reduction='total').item() == pytest.approx(1)


def test_ratio_does_not_depend_on_scale():
    feature = randn(2, 4, 8, 8)
    expected = high_frequency_ratio(feature)
    for scale in (1e-12, 1e12):
        torch.testing.assert_close(high_frequency_ratio(feature * scale), expected)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_any_float_dtype(dtype):
    feature = randn(2, 4, 8, 8).to(dtype)
    torch.testing.assert_close(high_frequency_ratio(feature), high_frequency_ratio(feature.float()))


def test_autocast_changes_nothing():
    feature = randn(4, 4, 8, 8)
    criterion = HighFrequencyRatio()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        criterion.update(feature)
        inside = criterion.compute()['score']
    assert inside.item() == pytest.approx(
        high_frequency_ratio(feature).double().mean().item(), rel=1e-12
    )


def test_non_contiguous_feature():
    tokens = randn(2, 63, 9)  # what a transformer gives: (B, N, C)
    feature = tokens.transpose(1, 2).unflatten(2, (7, 9))
    for dims in ('2d', 'tokens', 'channels'):
        torch.testing.assert_close(
            high_frequency_ratio(feature, dims=dims),
            high_frequency_ratio(feature.contiguous(), dims=dims),
        )


@pytest.mark.parametrize(
    ('bad', 'dims', 'measure', 'reduction'),
    combinations(
        [torch.nan, torch.inf, -torch.inf, 1e30],
        ['2d', 'tokens', 'channels'],
        ['power', 'amplitude'],
        ['channel_mean', 'total'],
    ),
)
def test_image_that_is_not_finite_is_counted_and_left_out(bad, dims, measure, reduction):
    if measure == 'amplitude' and bad == 1e30:
        bad = torch.inf  # an amplitude of that size is still finite
    feature = randn(5, 8, 8, 7)
    feature[1, 3, 7, 2] = bad
    feature[4, 0, 0, 0] = bad
    options = {'dims': dims, 'measure': measure, 'reduction': reduction}
    ratio = high_frequency_ratio(feature, **options)
    assert ratio.isnan().tolist() == [False, True, False, False, True]
    criterion = HighFrequencyRatio(**options)
    criterion.update(feature)
    result = criterion.compute()
    assert (result['count'], result['nonfinite']) == (3, 2)
    kept = ratio[[0, 2, 3]].double()
    assert result['score'].item() == pytest.approx(kept.mean().item(), rel=1e-12)
    assert result['std'].item() == pytest.approx(kept.std().item(), rel=1e-6)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'cutoff': 0.5}, 'cutoff must be a number between 0 and 0.5.* but got 0.5'),
        ({'cutoff': 0}, 'cutoff must be'),
        ({'cutoff': '0.15'}, 'cutoff must be'),
        ({'shape': 'disc'}, "shape must be one of radial, square, got 'disc'"),
        ({'measure': 'energy'}, 'measure must be one of power, amplitude, got'),
        ({'include_dc': 'exclude'}, "include_dc must be True or False, got 'exclude'"),
        ({'reduction': 'mean'}, 'reduction must be one of channel_mean, total, got'),
        ({'dims': '1d'}, 'dims must be one of 2d, tokens, channels, got'),
    ],
)
def test_bad_option_is_an_error_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        HighFrequencyRatio(**options)
    with pytest.raises(ValueError, match=message):
        high_frequency_ratio(torch.ones(1, 1, 8, 8), **options)


def test_too_small_map_is_an_error_that_says_so():
    with pytest.raises(ValueError, match=r'cutoff=0.15 leaves no low frequency.*size \(4, 4\)'):
        HighFrequencyRatio().update(torch.ones(1, 1, 4, 4))


def test_built_from_a_config():
    criterion = CRITERIA.build({'type': 'HighFrequencyRatio', 'cutoff': 0.25, 'dims': 'tokens'})
    feature = randn(3, 4, 8, 8)
    criterion.update(feature)
    expected = high_frequency_ratio(feature, cutoff=0.25, dims='tokens').double().mean()
    assert criterion.compute()['score'].item() == pytest.approx(expected.item(), rel=1e-12)
