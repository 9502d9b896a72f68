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


@pytest.mark.parametrize('name', ['noise', 'low_light', 'impulse', 'motion_blur'])
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


def test_impulse_noise_loses_its_share_of_the_pixels():
    grey = np.full((128, 128, 3), 100, np.uint8)
    changed = corrupt(grey, 'impulse', 2, seed=0)
    assert set(np.unique(changed)) == {0, 100, 255}
    assert (changed == changed[..., :1]).all()
    assert (changed != 100).mean() == pytest.approx(0.15, abs=0.01)
    assert (changed == 0).mean() == pytest.approx((changed == 255).mean(), abs=0.01)


def test_contrast_keeps_the_mean_and_scales_the_rest(photo):
    changed = corrupt(photo, 'contrast', 2, seed=0).astype(float)
    assert changed.mean() == pytest.approx(photo.mean(), abs=0.5)
    assert changed.std() == pytest.approx(0.3 * photo.std(), rel=0.02)


def test_motion_blurs_along_a_line_only():
    """A point becomes a streak: its spread along the motion is that of the line, across it none."""
    point = np.zeros((65, 65, 3), np.uint8)
    point[32, 32] = 255
    streak = corrupt(point, 'motion_blur', 3, seed=0)[..., 0].astype(float)
    rows, columns = (axis - 32 for axis in np.nonzero(streak))
    weights = streak[streak > 0] / streak.sum()
    spread = np.linalg.eigvalsh(np.cov([rows, columns], aweights=weights, ddof=0))
    length = 0.35 * 65
    assert spread[1] == pytest.approx(length**2 / 12, rel=0.1)
    assert spread[0] < 0.5


def test_bad_arguments(photo):
    with pytest.raises(ValueError, match=r"one of noise, low_light.* got 'fog'"):
        corrupt(photo, 'fog', 1, seed=0)
    with pytest.raises(ValueError, match='severity must be 1 to 3, got 4'):
        corrupt(photo, 'blur', 4, seed=0)
