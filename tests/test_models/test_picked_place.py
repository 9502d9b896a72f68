# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""A backbone whose block and feature are picked with the timestep."""

import copy

import pytest
import torch
from stopping import stop_after

from mmaselect.models import ASelecTDiT
from mmaselect.registry import CRITERIA
from mmaselect.selection.criteria import PerImageCriterion


@CRITERIA.register_module()
class Energy(PerImageCriterion):
    """Differs by orders of magnitude from place to place."""

    race_from = 4

    def per_image(self, feature):
        return feature.float().square().mean((1, 2, 3))


@pytest.fixture
def build(tiny_dit, photos, tmp_path):
    selection = dict(
        criterion='Energy', others=(), timesteps=[0, 300], num_images=12, image_size=32,
        cache_dir=tmp_path / 'cache',
    )  # fmt: skip

    def make(**options):
        given = dict(
            blocks='auto', feature='auto', calibration=photos, selection=selection, noise='fixed',
            channel_order='rgb', input_mean=127.5, input_std=127.5,
        )  # fmt: skip
        return ASelecTDiT(tiny_dit, **{**given, **options})

    return make


IMAGES = torch.linspace(-1, 1, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32)


def test_init_weights_picks_place_and_timestep(build):
    model = build()
    assert "blocks=auto of 6, feature='auto', timestep=auto" in repr(model)
    channels = model.out_channels
    model.init_weights()
    result = model.selection_result
    assert list(model.dit.keys) == result.cells and model.timestep == result.timestep
    assert model.blocks == tuple(result.blocks) and model.feature == result.feature
    assert f'blocks={result.blocks} of 6, feature={result.feature!r}' in repr(model)
    named = build(blocks=result.blocks, feature=result.feature, timestep=result.timestep)
    assert channels == model.out_channels == named.out_channels
    (one,), (other,) = model.eval()(IMAGES), named.eval()(IMAGES)
    assert torch.equal(one, other)
    # What is behind the deepest block is freed, and the checkpoints are those of named places.
    state, wanted = model.state_dict(), named.state_dict()
    assert state.keys() == wanted.keys()
    assert all(torch.equal(state[name], wanted[name]) for name in state)
    count = sum(p.numel() for p in model.dit.parameters())
    assert count == sum(p.numel() for p in named.dit.parameters())


def test_four_maps_at_a_given_timestep(build):
    model = build(blocks='auto:4', timestep=300)
    assert len(model.out_channels) == 4 and "blocks=auto:4 of 6, feature='auto'" in repr(model)
    with pytest.raises(RuntimeError, match='no place yet'):
        model(IMAGES)
    model.init_weights()
    assert model.timestep == 300 and model.selection_result.settings['timesteps'] == [300]
    assert len(model.eval()(IMAGES)) == 4 and list(model.blocks) == sorted(set(model.blocks))


def test_a_checkpoint_brings_the_place(build):
    trained = build()
    trained.init_weights()
    state = copy.deepcopy(trained.state_dict())
    fresh = build()
    fresh.load_state_dict(state)
    assert fresh.dit.keys == trained.dit.keys and fresh.timestep == trained.timestep
    assert torch.equal(fresh.eval()(IMAGES)[0], trained.eval()(IMAGES)[0])
    named = build(blocks=list(trained.blocks), feature=trained.feature, timestep='auto')
    named.load_state_dict(state)
    assert named.timestep == trained.timestep


def test_a_checkpoint_of_a_place_that_cannot_be_picked_is_refused(build):
    early = build(blocks=0, feature='query', timestep=0).state_dict()
    with pytest.raises(ValueError, match='which are not 2 of the places that this config may pick'):
        build(blocks='auto:2', feature='query').load_state_dict(early)
    picked = build()
    picked.init_weights()
    (block,) = picked.blocks
    other = build(blocks=block, feature='key', timestep=0).state_dict()
    with pytest.raises(ValueError, match=r'was trained with .*, the config says'):
        picked.load_state_dict(other)


def test_a_model_that_has_picked_nothing_can_be_stored_and_read(build):
    state = build().state_dict()
    model = build()
    model.load_state_dict(state)
    model.load_state_dict({}, strict=False)
    assert model.dit.search is not None
    model.init_weights()
    assert model.dit.search is None


def test_a_pick_that_a_checkpoint_owes_is_made_late(build):
    model = build()
    model.pick.expects_checkpoint = True
    model.init_weights()
    assert model.dit.search is not None
    assert len(model.eval()(IMAGES)) == 1 and model.dit.search is None


def test_a_cache_keeps_what_is_read_at_the_pick(build, tmp_path):
    cache = dict(kind='features', folder=tmp_path / 'frozen')
    model = build(cache=cache)
    model.init_weights()
    maps = model.eval()(IMAGES)
    plain = build()
    plain.init_weights()
    assert all(map(torch.equal, maps, plain.eval()(IMAGES)))
    model.train()  # writes what is in memory
    # It is the cache of the named place: found there, with no pass of the transformer.
    result = model.selection_result
    named = build(
        blocks=result.blocks, feature=result.feature, timestep=result.timestep, cache=cache
    )
    passes = stop_after(named.dit, 0)
    assert all(map(torch.equal, maps, named.eval()(IMAGES))) and not passes


def test_compiling_waits_for_the_pick(build):
    model = build(compile=dict(backend='eager'))
    model.init_weights()
    assert len(model.eval()(IMAGES)) == 1
