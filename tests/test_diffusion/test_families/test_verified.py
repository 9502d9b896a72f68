# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""``mmaselect verify`` on small models with prompts, packed latents and two kinds of blocks."""

import pytest
import test_flux2
import test_pixart
import test_z_image
import torch
from tiny_sd3 import save_sd3

from mmaselect.apis.verification import verify_model


@pytest.mark.parametrize(
    'build',
    [
        pytest.param(save_sd3, id='sd3'),
        pytest.param(test_flux2.TestFlux2Klein().build, id='flux2'),
        pytest.param(test_z_image.TestZImage().build, id='z_image'),
        pytest.param(test_pixart.TestPixArtSigma().build, id='pixart'),
    ],
)
def test_it_equals_the_whole_transformer(tmp_path, build):
    torch.manual_seed(0)
    build(tmp_path)
    found = verify_model(tmp_path, dtype='fp32', image_size=64)
    assert found['passed'], found['features']
    assert len(found['features']) > 20
    # FLUX.2's single blocks have no module that gives the attention's result alone.
    assert {name.split()[-1] for name in found['not_compared']} <= {'attention'}
    assert max(found['features'].values()) < 1e-6
    assert found['bytes']['features'] < found['bytes']['whole_transformer']
