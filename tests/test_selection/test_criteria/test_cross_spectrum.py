# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
import math

import numpy as np
import pytest
import torch
from pairwise import combinations

from mmaselect.selection.criteria import (
    CrossSpectrumHFR,
    cross_spectrum_hfr,
    high_frequency_ratio,
)

RATIO_OF_SUMS = {'pooling': 'ratio_of_sums', 'reduction': 'total'}


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def reference_sums(first, second, cutoff, shape, include_dc, denominator):
    """Numerator and denominator of each channel of one image: numpy's full spectrum, in loops."""
    parts, wholes = [], []
    for one, two in zip(first.astype(np.float64), second.astype(np.float64), strict=True):
        one, two = np.fft.fft2(one), np.fft.fft2(two)
        part = whole = 0.0
        for y, x in np.ndindex(*one.shape):
            fy, fx = abs(np.fft.fftfreq(one.shape[0])[y]), abs(np.fft.fftfreq(one.shape[1])[x])
            cross = (one[y, x] * np.conj(two[y, x])).real
            power = (abs(one[y, x]) ** 2 + abs(two[y, x]) ** 2) / 2
            if (max(fy, fx) if shape == 'square' else math.hypot(fy, fx)) > cutoff:
                part += cross
            if include_dc or (y, x) != (0, 0):
                whole += power if denominator == 'power' else cross
        parts.append(part)
        wholes.append(whole)
    return np.array(parts), np.array(wholes)


@pytest.fixture(params=[(8, 8), (7, 10)], ids=str)
def draws(request):
    image = 0.3 + randn(6, 5, *request.param) * torch.linspace(0.5, 2, 5)[:, None, None]
    return image + 0.5 * randn(*image.shape, seed=1), image + 0.5 * randn(*image.shape, seed=2)


@pytest.mark.parametrize(
    ('cutoff', 'shape', 'include_dc', 'denominator'),
    combinations([0.15, 0.25], ['radial', 'square'], [True, False], ['power', 'signal']),
)
def test_equals_numpy_spectrum_summed_one_frequency_at_a_time(
    draws, cutoff, shape, include_dc, denominator
):
    band = {
        'cutoff': cutoff,
        'shape': shape,
        'include_dc': include_dc,
        'denominator': denominator,
    }
    sums = [
        reference_sums(one, two, **band)
        for one, two in zip(draws[0].numpy(), draws[1].numpy(), strict=True)
    ]
    parts, wholes = (np.stack(s) for s in zip(*sums, strict=True))
    np.testing.assert_allclose(
        cross_spectrum_hfr(*draws, **band, reduction='channel_mean'),
        np.where(wholes > 0, parts / wholes, 0).mean(1),
        rtol=1e-4,
    )
    np.testing.assert_allclose(
        cross_spectrum_hfr(*draws, **band, reduction='total'),
        parts.sum(1) / wholes.sum(1),
        rtol=1e-4,
    )
    criterion = CrossSpectrumHFR(**band, **RATIO_OF_SUMS)
    criterion.update(*(draw[:2] for draw in draws))
    criterion.update(*(draw[2:] for draw in draws))
    assert criterion.compute()['score'].item() == pytest.approx(
        parts.sum() / wholes.sum(), rel=1e-5
    )


@pytest.mark.parametrize(
    ('dims', 'reduction', 'include_dc', 'denominator'),
    combinations(
        ['2d', 'tokens', 'channels'],
        ['channel_mean', 'total'],
        [True, False],
        ['power', 'signal'],
    ),
)
def test_identical_draws_give_the_plain_ratio_of_powers(dims, reduction, include_dc, denominator):
    feature = randn(3, 9, 7, 8)
    options = {'dims': dims, 'reduction': reduction, 'include_dc': include_dc}
    torch.testing.assert_close(
        cross_spectrum_hfr(feature, feature, denominator=denominator, **options),
        high_frequency_ratio(feature, **options),
    )


def test_order_of_the_draws_does_not_matter(draws):
    torch.testing.assert_close(cross_spectrum_hfr(*draws), cross_spectrum_hfr(*draws[::-1]))


@pytest.mark.parametrize(
    'options', [{'reduction': 'channel_mean'}, {'reduction': 'total'}, RATIO_OF_SUMS]
)
def test_independent_noise_scores_about_zero(options):
    criterion = CrossSpectrumHFR(**options)
    criterion.update(randn(256, 8, 8, 8, seed=3), randn(256, 8, 8, 8, seed=4))
    result = criterion.compute()
    assert abs(result['score']) < 4 * result['sem']
    assert result['sem'] < 0.005


def test_falls_with_noise_where_the_plain_ratio_rises():
    wave = torch.cos(torch.arange(8) * 2 * torch.pi / 8)
    smooth = (wave[:, None] + wave).expand(64, 16, 8, 8)
    signal = smooth + 0.5 * randn(64, 16, 8, 8)
    cross, plain = [], []
    for level in (0.0, 0.5, 2.0, 8.0):
        one, two = (signal + level * randn(*signal.shape, seed=s) for s in (1, 2))
        cross.append(cross_spectrum_hfr(one, two).mean())
        plain.append(high_frequency_ratio(one).mean())
    assert cross == sorted(cross, reverse=True)
    assert plain == sorted(plain)


def test_signal_denominator_says_how_the_signal_is_spread_whatever_the_noise():
    signal = randn(512, 8, 8, 8)
    options = dict(RATIO_OF_SUMS, denominator='signal')
    clean = CrossSpectrumHFR(**options)
    clean.update(signal, signal)
    noisy = CrossSpectrumHFR(**options)
    noisy.update(*(signal + randn(*signal.shape, seed=s) for s in (1, 2)))
    clean, noisy = clean.compute(), noisy.compute()
    assert noisy['sem'] < 0.01
    assert abs(noisy['score'] - clean['score']) < 4 * noisy['sem']


def test_standard_error_of_a_ratio_of_sums_is_that_of_many_repeats():
    scores, sems = [], []
    for repeat in range(300):
        image = randn(40, 2, 8, 8, seed=3 * repeat)
        image = image * (1 + image[:, :1, :1, :1].abs())  # numerator and denominator vary together
        one, two = (image + randn(*image.shape, seed=3 * repeat + k) for k in (1, 2))
        criterion = CrossSpectrumHFR(**RATIO_OF_SUMS)
        criterion.update(one, two)
        result = criterion.compute()
        scores.append(result['score'])
        sems.append(result['sem'])
        assert result['std'].item() == pytest.approx(result['sem'].item() * math.sqrt(40))
    # 300 repeats know their own spread to 1 / sqrt(600) = 4 %.
    assert torch.stack(sems).mean() == pytest.approx(torch.stack(scores).std().item(), rel=0.15)


@pytest.mark.parametrize('options', [{}, {'reduction': 'total'}, RATIO_OF_SUMS])
@pytest.mark.parametrize('value', [0.0, 1234.567])
def test_constant_maps_score_zero(options, value):
    criterion = CrossSpectrumHFR(**options)
    criterion.update(*(torch.full((3, 5, 7, 9), value) for _ in range(2)))
    result = criterion.compute()
    assert result['score'] == 0
    assert result['count'] == 3


@pytest.mark.parametrize('options', [{}, {'reduction': 'total'}, RATIO_OF_SUMS])
@pytest.mark.parametrize('bad', [torch.nan, torch.inf, 1e30])
@pytest.mark.parametrize('which', [0, 1])
def test_image_that_is_not_finite_in_either_draw_is_counted_and_left_out(options, bad, which):
    pair = [randn(4, 3, 8, 8, seed=s) for s in (1, 2)]
    clean = CrossSpectrumHFR(**options)
    clean.update(*(draw[[0, 1, 3]] for draw in pair))
    pair[which][2, 1, 3, 4] = bad
    criterion = CrossSpectrumHFR(**options)
    criterion.update(*pair)
    result, expected = criterion.compute(), clean.compute()
    assert (result['count'], result['nonfinite']) == (3, 1)
    assert result['score'].item() == pytest.approx(expected['score'].item(), rel=1e-6)


def test_takes_two_draws_of_the_same_images():
    assert CrossSpectrumHFR.draws == 2
    criterion = CrossSpectrumHFR()
    with pytest.raises(ValueError, match=r'takes 2 feature map.* but got 1'):
        criterion.update(randn(2, 3, 8, 8))
    with pytest.raises(ValueError, match='draws of the same images'):
        criterion.update(randn(2, 3, 8, 8), randn(3, 3, 8, 8))
    with pytest.raises(ValueError, match='draws must be of the same images'):
        cross_spectrum_hfr(randn(2, 3, 8, 8), randn(3, 3, 8, 8))


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'denominator': 'noise'}, 'denominator must be one of power, signal, got'),
        ({'pooling': 'mean'}, 'pooling must be one of image_mean, ratio_of_sums, got'),
        ({'pooling': 'ratio_of_sums'}, "use it with reduction='total'"),
        ({'denominator': 'signal', 'reduction': 'total'}, "use pooling='ratio_of_sums'"),
        ({'cutoff': 0.7}, 'cutoff must be'),
    ],
)
def test_bad_option_is_an_error_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        CrossSpectrumHFR(**options)
