# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""The pick where the best timestep is not 0: a trained DiT on the digits that it was trained on.

In the last block of ``mmaselect://dit_digits`` a linear probe has 32 % at t = 0 and 51 % at t = 200
(the model's card); in the first ones t = 0 is best.
"""

import numpy as np
import pytest
from PIL import Image

from mmaselect import select_timestep


@pytest.fixture(scope='module')
def digits(real_data):
    paths = sorted(real_data('digits').glob('train/*/*.png'))
    chosen = np.random.default_rng(0).permutation(len(paths))[:192]
    return [np.asarray(Image.open(paths[i]).convert('RGB')) for i in chosen]


def picks(images, criterion):
    result = select_timestep(
        'mmaselect://dit_digits',
        images,
        blocks=[1, 4],
        timesteps=[0, 50, 100, 200, 300, 600],
        criterion=criterion,
        others=(),
        num_images=192,
        method='full',  # a race is for the mean over blocks
        cache=False,
        progress=False,
    )
    return {curve.block: curve.timestep for curve in result.per_tap}


def test_the_default_finds_it_block_by_block(digits):
    found = picks(digits, 'InstanceSensitivity')
    assert found[1] == 0
    assert found[4] in (200, 300)


def test_the_cross_spectrum_does_not(digits):
    """Why it is no longer the default: to it, what an image shows is clearest without noise."""
    assert picks(digits, 'CrossSpectrumHFR')[4] == 0
