# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
import numpy as np
import pytest
from skimage import data, transform

from mmaselect.images.corruptions import CORRUPTIONS, corrupt


@pytest.fixture(scope='module')
def photo():
    return (transform.resize(data.astronaut(), (64, 64), anti_aliasing=True) * 255).astype(np.uint8)


@pytest.mark.parametrize('name', CORRUPTIONS)
def test_stronger_is_further_from_the_image(photo, name):
    errors = []
    for severity in (1, 2, 3):
        changed = corrupt(photo, name, severity, seed=0)
        assert (changed.shape, changed.dtype) == (photo.shape, np.uint8)
        errors.append(np.abs(changed.astype(float) - photo).mean())
    assert 0.5 < errors[0] < errors[1] < errors[2]


@pytest.mark.parametrize('name', ['noise', 'low_light'])
def test_noise_is_that_of_the_seed(photo, name):
    one = corrupt(photo, name, 2, seed=5)
    np.testing.assert_array_equal(corrupt(photo, name, 2, seed=5), one)
    assert (corrupt(photo, name, 2, seed=6) != one).any()


def test_noise_has_its_deviation():
    grey = np.full((128, 128, 3), 128, np.uint8)
    deviation = corrupt(grey, 'noise', 1, seed=0).astype(float).std() / 127.5
    assert deviation == pytest.approx(0.15, rel=0.02)


def test_low_light_keeps_the_brightness():
    grey = np.full((128, 128, 3), 100, np.uint8)
    dark = corrupt(grey, 'low_light', 1, seed=0).astype(float)
    assert dark.mean() == pytest.approx(100, rel=0.02)
    # Poisson noise of 60 * 100 / 255 photons and read noise of 1.5, in gray values.
    assert dark.std() == pytest.approx(np.sqrt(60 * 100 / 255 + 1.5**2) / 60 * 255, rel=0.03)


def test_bad_arguments(photo):
    with pytest.raises(ValueError, match=r"one of noise, low_light.* got 'fog'"):
        corrupt(photo, 'fog', 1, seed=0)
    with pytest.raises(ValueError, match='severity must be 1 to 3, got 4'):
        corrupt(photo, 'blur', 4, seed=0)
