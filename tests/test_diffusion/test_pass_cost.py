# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""What a pass costs, by where it ends."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mmaselect.diffusion import FrozenDiT
from mmaselect.diffusion.pass_cost import PassCost, count_flops

FEATURES = ('query', 'key', 'value', 'attention', 'output')


@pytest.fixture(scope='module')
def dit(tiny_dit):
    return FrozenDiT.from_pretrained(tiny_dit, blocks='auto', feature='auto')


@pytest.mark.parametrize('size', [32, (16, 24)])
def test_flops_of_each_cell_are_those_of_a_pass_that_ends_there(dit, size):
    """Counted by PyTorch on a pass of two images, without its fused attention."""
    found = count_flops(dit, size)
    assert set(found) == set(dit.keys) and len(set(found.values())) == len(found)
    height, width = (size, size) if isinstance(size, int) else size
    latent = torch.zeros(2, 3, height, width)
    for key in dit.keys:
        counter = FlopCounterMode(display=False)
        with counter, sdpa_kernel(SDPBackend.MATH):
            dit.features(latent, 500, latent, [key])
        assert counter.get_total_flops() == 2 * found[key], key


def test_the_cost_of_a_search_and_of_the_default_place(dit, tiny_dit):
    cost = PassCost.of(dit, 32)
    default = FrozenDiT.from_pretrained(tiny_dit)
    assert cost.default == (3, 'query') == default.keys[0]
    assert cost.weights == dit.weight_bytes and cost.default_weights == default.weight_bytes
    assert cost.to([(3, 'query')]) == count_flops(default, 32)[3, 'query']
    assert cost.whole == cost.flops[5, 'output'] == cost.to([(0, 'key'), (5, 'output')])
    # In half precision, half as many bytes.
    half = FrozenDiT.from_pretrained(tiny_dit, blocks='auto', feature='auto', dtype='bf16')
    assert PassCost.of(half, 32).weights == cost.weights // 2


def test_a_default_that_is_no_candidate_has_no_cost(tiny_dit):
    few = FrozenDiT.from_pretrained(tiny_dit, blocks='auto:<=2')
    cost = PassCost.of(few, 32)
    assert cost.default is None and cost.default_weights is None
    assert set(cost.flops) == {(0, 'query'), (1, 'query'), (2, 'query')}
    # Of given blocks the deepest, whichever the family's default is.
    given = FrozenDiT.from_pretrained(tiny_dit, blocks=[1, 4], feature='auto')
    cost = PassCost.of(given, 32)
    assert cost.default == (4, 'query') and cost.default_weights == cost.weights


def test_counting_changes_nothing(dit):
    latent = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    before, state = dit.features(latent, 100, latent), torch.get_rng_state()
    family = dit.family
    count_flops(dit, 32)
    assert dit.family is family and torch.equal(torch.get_rng_state(), state)
    after = dit.features(latent, 100, latent)
    assert all(torch.equal(before[key], after[key]) for key in dit.keys)
