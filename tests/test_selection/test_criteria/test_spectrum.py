# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
import math

import numpy as np
import pytest
import torch

from mmaselect.selection.criteria.spectrum import (
    band_sums,
    band_weights,
    frequency_distance,
    half_spectrum,
    power,
    share,
    transform_size,
)

CPU = torch.device('cpu')
SIZES = [(8, 8), (7, 7), (8, 7), (7, 8), (4, 16), (1, 16), (16, 1), (9,), (16,)]


def full_distance(size, shape):
    """Distance from zero of every frequency of numpy's full spectrum, one at a time."""
    distance = np.empty(size)
    for index in np.ndindex(*size):
        parts = [abs(np.fft.fftfreq(n)[i]) for n, i in zip(size, index, strict=True)]
        distance[index] = max(parts) if shape == 'square' else math.hypot(*parts)
    return distance


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('shape', ['radial', 'square'])
def test_distance_is_that_of_the_kept_half_of_the_full_spectrum(size, shape):
    expected = full_distance(size, shape)[..., : size[-1] // 2 + 1]
    np.testing.assert_allclose(frequency_distance(size, shape).numpy(), expected, atol=1e-15)


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('shape', ['radial', 'square'])
@pytest.mark.parametrize('include_dc', [True, False])
def test_weights_count_every_frequency_of_the_full_spectrum_once(size, shape, include_dc):
    high, every = band_weights(size, 0.3, shape, include_dc, CPU)
    samples = math.prod(size)
    distance = full_distance(size, shape)
    assert (high.sum() * samples).item() == pytest.approx((distance > 0.3).sum(), rel=1e-6)
    assert (every.sum() * samples).item() == pytest.approx(samples - (not include_dc), rel=1e-6)


@pytest.mark.parametrize('dims', ['2d', 'tokens', 'channels'])
@pytest.mark.parametrize('size', [(8, 8), (7, 9), (4, 16)])
def test_energy_over_all_frequencies_is_that_of_the_map(dims, size):
    feature = torch.randn(3, 10, *size, generator=torch.Generator().manual_seed(0)) + 2
    weights = band_weights(transform_size(feature, dims), 0.25, 'radial', True, CPU)
    _, energy = band_sums(power(half_spectrum(feature, dims)), *weights)
    torch.testing.assert_close(energy.sum(1), feature.square().sum((1, 2, 3)))


def test_frequency_on_the_cut_off_is_low():
    # 0.15, 0.25 and 0.35 are frequencies of 20 samples; 3-4-5 puts a radius of 0.25 on the grid.
    for cutoff, index in ((0.15, 3), (0.25, 5), (0.35, 7)):
        high, _ = band_weights((20,), cutoff, 'radial', True, CPU)
        assert high[index] == 0
        assert high[index + 1] > 0
    high, _ = band_weights((20, 20), 0.25, 'radial', True, CPU)
    assert high[3, 4] == 0
    assert high[4, 4] > 0


def test_weights_are_cached_and_fit_for_autograd_even_if_made_in_inference_mode():
    with torch.inference_mode():
        high, every = band_weights((6, 10), 0.2, 'radial', True, CPU)
    assert band_weights((6, 10), 0.2, 'radial', True, CPU)[0] is high
    feature = torch.randn(1, 2, 6, 10, requires_grad=True)
    part, _ = band_sums(power(half_spectrum(feature)), high, every)
    part.sum().backward()
    assert feature.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ('size', 'cutoff', 'include_dc', 'band'),
    [
        ((4, 4), 0.15, False, 'low'),
        ((1, 1), 0.15, True, 'high'),
        ((1, 1), 0.15, False, 'high'),
        ((3,), 0.35, True, 'high'),
    ],
)
def test_map_too_small_for_the_cut_off(size, cutoff, include_dc, band):
    with pytest.raises(ValueError, match=f'no {band} frequency') as error:
        band_weights(size, cutoff, 'radial', include_dc, CPU)
    assert str(size) in str(error.value)
    assert f'cutoff={cutoff}' in str(error.value)


def test_share_of_nothing_is_zero_and_of_the_infinite_is_nan():
    part = torch.tensor([1.0, 0.0, 1e-20, 1.0, torch.nan])
    whole = torch.tensor([4.0, 0.0, 1e-20, torch.inf, torch.nan])
    ratio = share(part, whole, torch.full((5,), 1e-18))
    torch.testing.assert_close(
        ratio, torch.tensor([0.25, 0.0, 0.0, torch.nan, torch.nan]), equal_nan=True
    )
