# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
import numpy as np
import pytest
import torch

from mmaselect.analysis.frequency import (
    high_share,
    picture,
    principal_components,
    split_frequencies,
)
from mmaselect.selection.criteria import high_frequency_ratio


@pytest.mark.parametrize('shape', ['radial', 'square'])
@pytest.mark.parametrize('size', [(8, 8), (6, 9), (7, 5)])
def test_split_against_numpy(size, shape):
    feature = torch.randn(2, 3, *size)
    low, high = split_frequencies(feature, 0.25, shape)
    torch.testing.assert_close(low + high, feature)
    y, x = np.meshgrid(*(np.fft.fftfreq(n) for n in size), indexing='ij')
    distance = np.hypot(y, x) if shape == 'radial' else np.maximum(abs(y), abs(x))
    spectrum = np.fft.fft2(feature.double().numpy()) * (distance > 0.25 + 1e-9)
    np.testing.assert_allclose(high.numpy(), np.fft.ifft2(spectrum).real, atol=1e-5)


def test_share_is_the_high_frequency_ratio():
    feature = torch.randn(1, 4, 8, 8) + 5
    low, high = split_frequencies(feature, 0.15)
    expected = high_frequency_ratio(feature, 0.15, reduction='total').item()
    assert high_share(low[0], high[0]) == pytest.approx(expected, abs=1e-4)
    flat = torch.zeros(4, 8, 8)
    assert high_share(flat, flat) == 0


def test_principal_components_are_those_of_numpy():
    feature = torch.randn(5, 6, 7)
    basis = principal_components(feature)
    _, vectors = np.linalg.eigh(np.cov(feature.flatten(1).double().numpy()))
    for number in range(3):
        assert abs(basis[:, number].double().numpy() @ vectors[:, -1 - number]) > 0.999
    torch.testing.assert_close(principal_components(feature), basis)


def test_pictures():
    feature = torch.randn(5, 6, 7)
    colors = picture(feature)
    assert colors.shape == (6, 7, 3) and colors.dtype == np.uint8
    assert (colors.min((0, 1)) == 0).all() and (colors.max((0, 1)) == 255).all()
    grey = picture(feature, 'mean')
    assert (grey == grey[..., :1]).all()
    order = grey[..., 0].ravel().argmax()
    assert order == feature.mean(0).flatten().argmax()
    assert (picture(torch.ones(5, 4, 4)) == 128).all()
    assert picture(torch.randn(2, 4, 4)).shape == (4, 4, 3), 'fewer channels than colors'
    with pytest.raises(ValueError, match="view must be one of pca, mean, got 'rgb'"):
        picture(feature, 'rgb')


def test_bad_cutoff():
    with pytest.raises(ValueError, match='cutoff must be a number between 0 and'):
        split_frequencies(torch.zeros(1, 1, 4, 4), 0.7)
