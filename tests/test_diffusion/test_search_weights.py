# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""What a search of blocks will hold in memory."""

import pytest
import torch

from mmaselect.diffusion import FrozenDiT, known_families
from mmaselect.diffusion.search_weights import say_what_is_loaded
from mmaselect.model_zoo import build_whole, model_info


@pytest.fixture(scope='module')
def flux():
    family = known_families()['FluxTransformer2DModel']
    model = next(one for one in family.published if one.name.endswith('FLUX.1-dev'))
    return family(dict(build_whole(family, model).config))


def test_weights_of_a_large_model_are_said(flux, caplog):
    say_what_is_loaded(flux, 'auto', torch.bfloat16)
    facts = model_info('black-forest-labs/FLUX.1-dev')
    assert (facts.whole, facts.held) == (22.2, 14.8)
    assert caplog.messages == [
        "A-SelecT: blocks='auto' loads 57 blocks: 22.2 GiB of weights in bfloat16; up to the "
        "default block it is 14.8 GiB. blocks='auto:<=28' loads no more than that"
    ]
    caplog.clear()
    say_what_is_loaded(flux, 'auto:4:<=40', torch.float32)
    assert "blocks='auto:4:<=40' loads 41 blocks: " in caplog.text and 'float32' in caplog.text


def test_a_search_that_holds_no_more_says_nothing(flux, tiny_dit, caplog):
    say_what_is_loaded(flux, 'auto:<=28', torch.bfloat16)
    FrozenDiT.from_pretrained(tiny_dit, blocks='auto')
    assert 'of weights' not in caplog.text
