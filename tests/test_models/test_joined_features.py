# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""A backbone that joins several features of one pass."""

import copy

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from stopping import stop_after

from mmaselect import FeatureExtractor
from mmaselect.models import ASelecTDiT
from mmaselect.models.backbones.checkpoint_guard import as_read_from, maps_read

IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
NAMES = ('query', 'key', 'value', 'attention', 'output')


@pytest.fixture
def build(tiny_dit, photos, tmp_path):
    selection = dict(
        timesteps=[0, 300], num_images=16, image_size=32, others=(), cache_dir=tmp_path / 'cache'
    )

    def make(selection=selection, **options):
        given = dict(timestep=300, noise='fixed', input_mean=127.5, input_std=127.5)
        given |= dict(channel_order='rgb', calibration=photos, selection=selection)
        return ASelecTDiT(tiny_dit, **{**given, **options}).eval()

    make.selection = selection
    return make


@pytest.fixture
def maps(tiny_dit):
    extract = FeatureExtractor(tiny_dit, 300, blocks=[1, 3], feature=['query', 'attention'])
    return extract(IMAGES)


# -- named features -------------------------------------------------------------------------------
def test_features_of_each_block_are_one_map(build, maps):
    model = build(blocks=[3, 1], feature=['query', 'attention'])
    wanted = [torch.cat([maps[b, 'query'], maps[b, 'attention']], 1) for b in (3, 1)]
    found = model(IMAGES)
    assert all(map(torch.equal, found, wanted)) and len(found) == 2
    assert model.out_channels == [one.shape[1] for one in found] and model.out_indices == (3, 1)
    assert "feature=['query', 'attention']" in repr(model)


def test_features_that_are_named_with_their_blocks_are_one_map(build, maps):
    model = build(feature=['3.query', '1.attention'])
    (found,) = model(IMAGES)
    assert torch.equal(found, torch.cat([maps[3, 'query'], maps[1, 'attention']], 1))
    assert model.out_channels == [found.shape[1]] and model.out_indices == (3,)
    (last,) = build(feature='-3.query')(IMAGES)
    assert torch.equal(last, maps[3, 'query'])


def test_two_timesteps_are_joined_for_each_feature(build, tiny_dit):
    model = build(feature=['3.query', '1.query'], timestep=[300, 600])
    extract = FeatureExtractor(tiny_dit, [300, 600], blocks=[3, 1])
    (found,) = model(IMAGES)
    assert torch.equal(found, torch.cat(list(extract(IMAGES).values()), 1))
    assert model.out_channels == [found.shape[1]]


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(blocks=3, feature=['3.query', '1.key']), 'names the blocks already: leave out bloc'),
        (dict(feature=['3.query', 'key']), 'give a block to each name'),
        (dict(feature=['3.query', '3.query']), r'has a \(block, feature\) twice'),
        (dict(feature=['query', 'query']), 'has a name twice'),
        (dict(feature=['3.query', '9.key']), 'block 9 is out of range'),
        (dict(feature=['3.querry']), "'querry' is not available for DiT.*Is 'query' meant"),
        (dict(feature=dict(name='query')), "'name'.*names"),
        (dict(feature=dict(names='query', fusion='sum')), 'fusion'),
        (dict(feature=dict(names='query', fusion='concat:pca')), 'and one is read'),
        (
            dict(feature=dict(names=['query', 'key'], fusion='concat:pca'), calibration=None),
            'is fitted to calibration images',
        ),
    ],
)
def test_what_cannot_be_joined_is_named(build, options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


# -- checkpoints ----------------------------------------------------------------------------------
def test_what_a_checkpoint_says_of_joined_features():
    for maps in (
        (((2, 'query'),), ((4, 'query'),)),
        (((2, 'query'), (2, 'key')), ((4, 'query'), (4, 'key'))),
        (((4, 'output'), (0, 'query')),),
        (((2, 'query'), (4, 'query')),),
    ):
        assert maps_read(as_read_from(maps, NAMES), NAMES) == maps
    for damaged in ([[0, 2, 5]], [[0, 2]], [[1, 2, 0], [0, 2, 0]], [[0.0, 2.0, 0.0]], [[]]):
        with pytest.raises(ValueError, match='damaged, or was edited'):
            maps_read(torch.tensor(damaged), NAMES)


@pytest.mark.parametrize(
    ('other', 'message'),
    [
        (
            dict(feature=['3.query', '1.key']),
            r'with block3.query\+block1.attention, the config says block3.query\+block1.key',
        ),
        (dict(feature=['1.attention', '3.query']), 'the config says'),
        (dict(blocks=[3, 1], feature=['query', 'attention']), 'the config says block3.query'),
        (dict(blocks=3), r'\+block1.attention, the config says query of block 3'),
        (
            dict(feature=dict(names=['3.query', '1.attention'], fusion='concat:pca')),
            "trained with feature's fusion 'concat': set",
        ),
    ],
)
def test_heads_that_were_trained_on_other_features_are_refused(build, other, message):
    trained = build(feature=['3.query', '1.attention'])
    build(feature=['3.query', '1.attention']).load_state_dict(trained.state_dict())
    with pytest.raises(ValueError, match=message):
        build(**other).load_state_dict(trained.state_dict())


def test_a_cache_keeps_every_feature(build, maps, tmp_path):
    cache = dict(kind='features', folder=tmp_path / 'frozen')
    model = build(feature=['3.query', '1.attention'], cache=cache)
    (found,) = model(IMAGES)
    model.train()  # writes what is in memory
    again = build(feature=['3.query', '1.attention'], cache=cache)
    passes = stop_after(again.dit, 0)
    assert torch.equal(again(IMAGES)[0], found) and not passes
    assert torch.equal(found, torch.cat([maps[3, 'query'], maps[1, 'attention']], 1))


# -- features that are picked ---------------------------------------------------------------------
def test_several_that_go_together_are_picked(build):
    how = dict(build.selection, top=3)
    options = dict(blocks='auto', feature='auto', timestep='auto', selection=how)
    model = build(**options)
    channels = model.out_channels
    model.init_weights()
    result = model.selection_result
    assert len(set(result.cells)) == 3 == len(result.joined)
    named = build(feature=result.place_arguments[1], timestep=result.timestep)
    (found,), (wanted,) = model(IMAGES), named(IMAGES)
    assert torch.equal(found, wanted) and channels == [found.shape[1]] == named.out_channels
    state = copy.deepcopy(model.state_dict())
    assert all(torch.equal(state[name], one) for name, one in named.state_dict().items())
    fresh = build(**options)
    assert fresh.state_dict()['read_from'].shape == state['read_from'].shape
    fresh.load_state_dict(state)
    assert fresh.dit.maps == model.dit.maps and fresh.timestep == model.timestep
    assert torch.equal(fresh(IMAGES)[0], found)
    with pytest.raises(ValueError, match=r'which are not 2 of the places that this config may'):
        build(**dict(options, selection=dict(how, top=2))).load_state_dict(state)
    with pytest.raises(ValueError, match='which are not 1 of the places that this config may'):
        build(**dict(options, selection=build.selection)).load_state_dict(state)


def test_several_for_each_of_many_maps_are_refused_at_once(build):
    for options in (dict(blocks='auto:2'), dict(blocks=[1, 3], feature='auto')):
        with pytest.raises(ValueError, match='top=2 picks 2'):
            build(selection=dict(build.selection, top=2), **options)


# -- principal components -------------------------------------------------------------------------
def test_components_are_those_of_scikit_learn(build, photos, tiny_dit):
    feature = dict(names=['3.query', '1.attention'], fusion='concat:pca')
    model, plain = build(feature=feature), build(feature=feature['names'])
    assert model.out_channels == [plain.dit.channels((3, 'query'))]
    with pytest.raises(RuntimeError, match='is fitted by init_weights'):
        model(IMAGES)
    model.init_weights()
    (found,), (joined,) = model(IMAGES), plain(IMAGES)
    assert found.shape[1:] == (model.out_channels[0], *joined.shape[2:])
    # The same by another path: tokens of the same images under the same noise.
    sweep = model.build_sweep()
    from mmaselect.diffusion import draw_noise, noise_seed

    rows = []
    for position in sweep.calibration.order:
        batch = sweep.calibration.batch([position])
        noise = draw_noise((3, 32, 32), [noise_seed(0, batch.indices[0], 0)])
        read = plain.dit.features(batch.images, 300, noise)
        parts = [read[key][0].flatten(1).T for key in ((3, 'query'), (1, 'attention'))]
        rows.append(torch.cat(parts, 1))
    rows = torch.cat(rows).double().numpy()
    width = model.out_channels[0]
    scale = np.concatenate(
        [np.full(one.shape[1], np.sqrt(one.var(0).mean())) for one in np.split(rows, [width], 1)]
    )
    pca = PCA(width).fit(rows / scale)
    tokens = joined.movedim(1, -1).flatten(0, 2).double().numpy()
    wanted = pca.transform(tokens / scale)
    ours = found.movedim(1, -1).flatten(0, 2).double().numpy()
    strong = pca.explained_variance_ > 1e-4 * pca.explained_variance_[0]
    assert strong.sum() >= 8
    assert np.abs(ours) / np.abs(wanted).max(0) == pytest.approx(
        np.abs(wanted) / np.abs(wanted).max(0), abs=1e-3
    )


def test_components_travel_in_checkpoints_and_copies(build):
    feature = dict(names=['query', 'attention'], fusion='concat:pca')
    model = build(blocks=[1, 3], feature=feature)
    model.init_weights()
    found = model(IMAGES)
    assert [one.shape[1] for one in found] == model.out_channels and len(found) == 2
    fresh = build(blocks=[1, 3], feature=feature)
    fresh.pick.expects_checkpoint = True
    fresh.init_weights()
    assert not fresh.joining.is_fitted
    fresh.load_state_dict(copy.deepcopy(model.state_dict()))
    assert all(map(torch.equal, fresh(IMAGES), found))
    assert all(map(torch.equal, copy.deepcopy(model)(IMAGES), found))
    with pytest.raises(ValueError, match="fusion 'concat:pca': set it"):
        build(blocks=[1, 3], feature=['query', 'attention']).load_state_dict(model.state_dict())
    # A checkpoint that was awaited and did not come: it is fitted with the first batch.
    late = build(blocks=[1, 3], feature=feature)
    late.pick.expects_checkpoint = True
    late.init_weights()
    assert all(map(torch.equal, late(IMAGES), found))
    with pytest.raises(ValueError, match='share the checkpoint'):
        model.save_pretrained('nowhere')


def test_components_of_what_is_picked(build):
    model = build(
        blocks='auto', feature=dict(names='auto', fusion='concat:pca'), timestep='auto',
        selection=dict(build.selection, top=3),
    )  # fmt: skip
    width = model.out_channels
    model.init_weights()
    (found,) = model(IMAGES)
    assert [found.shape[1]] == width == [model.dit.channels(model.dit.keys[0])]
    assert bool(found.isfinite().all()) and len(model.dit.keys) == 3
