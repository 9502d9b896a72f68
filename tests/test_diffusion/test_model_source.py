# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""One description of a model, which every face takes; and the arguments that it replaced."""

import shutil
import warnings
from pathlib import Path

import pytest
import torch

from mmaselect import ASelecTDiT, FeatureExtractor, select_timestep
from mmaselect.analysis.study import build_frozen
from mmaselect.apis import FeaturesOnly, TransformersBackbone
from mmaselect.diffusion import FrozenDiT, ModelSource, PipelineSource


def test_a_name_a_dict_and_a_description_are_one():
    source = ModelSource('x', base='y')
    assert ModelSource.parse('x') == ModelSource('x')
    assert ModelSource.parse(dict(model='x', base='y')) == source
    assert ModelSource.parse(source) is source
    assert str(ModelSource('x')) == 'x' and str(source) == "x (base='y')"


def test_a_token_is_never_shown():
    source = ModelSource('x', token='secret', revision='main')
    assert source.hub_kwargs == dict(token='secret', revision='main')
    assert not any('secret' in text for text in (str(source), repr(source), str(source.as_dict())))
    with pytest.warns(FutureWarning) as said:
        ModelSource.gather('x', dict(token='secret'))
    assert 'secret' not in str(said[0].message)


@pytest.mark.parametrize(
    ('lora', 'expected'),
    [
        (None, ()),
        ('a', (('a', 1.0),)),
        (dict(path='a', scale=2), (('a', 2.0),)),
        (['a', dict(path='b', scale=0.5)], (('a', 1.0), ('b', 0.5))),
    ],
)
def test_loras(lora, expected):
    assert ModelSource('x', lora=lora).loras == expected


@pytest.mark.parametrize(
    ('pretrained', 'message'),
    [
        (dict(base='x'), r'lacks the model: give its name, or a dict'),
        (dict(model='x', bse='y'), r"pretrained has unknown keys \['bse'\]: it takes model, base"),
        (dict(model='x', lora=dict(scale=2)), 'lacks the path'),
        (dict(model='x', lora=dict(path='a', weight=2)), r"lora has unknown keys \['weight'\]"),
        (dict(model='x', revision=5), 'revision must be str, got 5'),
        (dict(model='x', load_kwargs='abc'), 'load_kwargs must be a dict'),
        (None, 'pretrained must be a path'),
    ],
)
def test_errors(pretrained, message):
    with pytest.raises(ValueError, match=message):
        PipelineSource(pretrained)


@pytest.fixture
def parts(tiny_latent_dit, tmp_path):
    """A model whose transformer and scheduler lie apart, and the whole."""
    alone = shutil.copytree(Path(tiny_latent_dit) / 'transformer', tmp_path / 'alone')
    return dict(model=str(alone), base=tiny_latent_dit), tiny_latent_dit


def test_all_faces_take_it(parts, photos):
    source, whole = parts
    pixels = torch.rand(1, 3, 32, 32) * 2 - 1
    expected = FeatureExtractor(whole, 100, blocks=[2], device='cpu')(pixels)[2, 'query']
    for given in (source, ModelSource(**source)):
        found = [
            FeatureExtractor(given, 100, blocks=[2], device='cpu')(pixels)[2, 'query'],
            FeaturesOnly(given, 100, [2])(pixels)[0],
            ASelecTDiT(given, blocks=[2], timestep=100).eval()(pixels)[0],
        ]
        assert all(torch.equal(one, expected) for one in found)
        options = dict(blocks=[2], timesteps=[0, 500], cache=False, progress=False, device='cpu')
        assert select_timestep(given, photos, image_size=32, num_images=4, **options) is not None
        backbone = TransformersBackbone.from_pretrained(given, timestep=100, out_indices=[2])
        assert torch.equal(backbone(pixels).feature_maps[0], expected)


def old(call):
    """What a call with old arguments gives, and the new form that its warning shows."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        result = call()
    return result, ' '.join(str(one.message) for one in said if one.category is FutureWarning)


def test_old_arguments_work_and_show_the_new_form(parts):
    source, _ = parts
    alone, base = source['model'], source['base']
    pixels = torch.rand(1, 3, 32, 32) * 2 - 1
    expected = FrozenDiT.from_pretrained(source, blocks=[2]).encode(pixels)
    dit, said = old(lambda: FrozenDiT.from_pretrained(alone, blocks=[2], base=base))
    assert torch.equal(dit.encode(pixels), expected)
    assert f'write pretrained={source!r}' in said
    extract, said = old(
        lambda: FeatureExtractor(alone, [0, 9], blocks=[2], base=base, fusion='mean')
    )
    assert extract.out_channels == [16]
    assert "timestep={'steps': [0, 9], 'fusion': 'mean'}" in said
    model, said = old(
        lambda: ASelecTDiT(
            alone, blocks=[2], timestep=[3, 4], base=base, hub_kwargs=dict(revision='main'),
            load_kwargs={}, lora=None, lora_scale=1.0, noise='fixed', noise_seed=3, num_draws=2,
            timestep_from='config', fusion='mean',
        )
    )  # fmt: skip
    assert model.pick.plan.fusion == 'mean' and model.pick.plan.source == 'config'
    assert (model.noise.mode, model.noise.seed, model.noise.draws) == ('fixed', 3, 2)
    assert model.source == ModelSource(alone, base=base, revision='main', load_kwargs={})
    assert "noise={'mode': 'fixed', 'seed': 3, 'draws': 2}" in said
    new = ASelecTDiT(
        dict(source, revision='main'),
        blocks=[2],
        timestep=dict(steps=[3, 4], fusion='mean', source='config'),
        noise=dict(mode='fixed', seed=3, draws=2),
    )
    assert torch.equal(model(pixels)[0], new(pixels)[0])
    _, said = old(lambda: build_frozen(dict(pretrained=alone, base=base), [2], ['query'], 'cpu'))
    assert 'write pretrained=' in said
    _, said = old(lambda: FrozenDiT.from_pretrained(source, blocks=[2]))
    assert not said


def test_an_argument_in_both_forms_is_an_error(tiny_dit):
    with pytest.raises(ValueError, match='base is given twice'):
        FrozenDiT.from_pretrained(dict(model=tiny_dit, base=tiny_dit), base=tiny_dit)
    with pytest.raises(ValueError, match=r'fusion and timestep=dict\(fusion=...\) are the same'):
        ASelecTDiT(tiny_dit, timestep=dict(steps=3, fusion='mean'), fusion='concat')


def test_a_checkpoint_of_the_old_arguments_loads(tiny_dit):
    options = dict(blocks=[2], calibration=None)
    before, _ = old(
        lambda: ASelecTDiT(tiny_dit, timestep=[7, 9], fusion='mean', num_draws=2, **options)
    )
    state = before.state_dict()
    assert {'picked_timestep', 'fused_timesteps', 'frozen_signature', 'read_from'} <= set(state)
    now = ASelecTDiT(
        tiny_dit, timestep=dict(steps=[7, 9], fusion='mean'), noise=dict(draws=2), **options
    )
    now.load_state_dict(state)
    with pytest.raises(ValueError, match='trained on 2 timesteps'):
        ASelecTDiT(tiny_dit, timestep=7, **options).load_state_dict(state)
