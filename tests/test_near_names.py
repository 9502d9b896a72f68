# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""A slip in the name of an argument: every face names the one that is meant."""

import numpy as np
import pytest

from mmaselect import ASelecTDiT, FeatureExtractor, FrozenDiT, select_timestep
from mmaselect.apis import FeaturesOnly, TransformersBackbone, save_features
from mmaselect.apis.sklearn import DiTFeatures
from mmaselect.checks import close_name
from mmaselect.look import look_at

IMAGES = [np.full((32, 32, 3), 40 * n, np.uint8) for n in range(4)]


@pytest.mark.parametrize(
    ('name', 'known', 'meant'),
    [
        ('calibraton', ['calibration', 'selection'], 'calibration'),
        ('BLOCKS', ['blocks', 'feature'], 'blocks'),
        ('layers', ['blocks', 'feature'], 'blocks'),
        ('q', ['query', 'key'], 'query'),
        ('xyz', ['query', 'key'], None),
    ],
)
def test_close_names(name, known, meant):
    assert close_name(name, known) == meant


@pytest.mark.parametrize(
    ('slip', 'message'),
    [
        (dict(block=3), "ASelecTDiT has no argument 'block': is blocks meant"),
        (dict(calibraton='x'), 'is calibration meant'),
        (dict(out_indices=[3]), 'is blocks meant'),
        (dict(n_images=5), r'is selection=dict\(num_images=...\) meant'),
        (dict(num_images=5), r'write selection=dict\(num_images=...\)'),
        (dict(depth=50), 'write _delete_=True into this backbone'),
        (dict(frozen_stages=1), 'the argument is of the one that it replaces'),
        (dict(norm_eval=True), 'write _delete_=True'),
        (dict(revison='main'), r'is pretrained=dict\(revision=...\) meant'),
        (dict(num_draw=2), 'ASelecTDiT has no argument'),
    ],
)
def test_the_backbone(tiny_dit, slip, message):
    with pytest.raises(TypeError, match=message):
        ASelecTDiT(tiny_dit, timestep=5, **slip)


#: Every face, by what it reads when it is called with the argument in some spelling.
FACES = {
    'FrozenDiT': lambda m, f, out, **given: FrozenDiT.from_pretrained(m, **given).keys,
    'FeatureExtractor': lambda m, f, out, **given: FeatureExtractor(m, 50, **given).keys,
    'FeaturesOnly': lambda m, f, out, **given: FeaturesOnly(m, 50, **given).dit.keys,
    'TransformersBackbone': lambda m, f, out, **given: TransformersBackbone(
        m, 50, **given
    ).feature_info.module_name(),
    'ASelecTDiT': lambda m, f, out, **given: ASelecTDiT(m, timestep=5, **given).dit.keys,
    'scikit-learn': lambda m, f, out, **given: DiTFeatures(m, 50, **given).get_params()['feature'],
    'select': lambda m, f, out, **given: (
        select_timestep(m, IMAGES, timesteps=[0, 500], cache=False, progress=False, **given).cells
    ),
    'look_at': lambda m, f, out, **given: look_at(IMAGES[:1], m, timesteps=[5], **given).keys,
    'save_features': lambda m, f, out, **given: list(
        save_features(f, out, m, timestep=0, progress=False, **given)[0]
    ),
}


@pytest.mark.parametrize('face', FACES)
def test_feature_in_either_spelling_on_every_face(tiny_dit, photos, tmp_path, face):
    call = FACES[face]
    found = [
        call(tiny_dit, photos, tmp_path / name, **{name: 'key'}) for name in ('feature', 'features')
    ]
    assert found[0] == found[1] and 'key' in str(found[0])
    with pytest.raises(TypeError, match='feature and features are the same argument'):
        call(tiny_dit, photos, tmp_path / 'both', feature='key', features='key')


@pytest.mark.parametrize(
    ('call', 'message'),
    [
        (lambda m, f: FeatureExtractor(m, 50, block=3), "FeatureExtractor .*'block': is blocks"),
        (lambda m, f: FeatureExtractor(m, 50, imagesize=32), 'is image_size meant'),
        (lambda m, f: FeatureExtractor(m, 50, featur='key'), 'is feature meant'),
        (lambda m, f: FeatureExtractor(m, 50, n_images=4), r'is selection=dict\(num_images'),
        (lambda m, f: FeaturesOnly(m, 50, featurs='key'), 'is feature meant'),
        (lambda m, f: TransformersBackbone(m, 50, image_means=0), 'is image_mean meant'),
        (lambda m, f: FrozenDiT.from_pretrained(m, block=3), 'from_pretrained .* is blocks'),
        (
            lambda m, f: select_timestep(m, IMAGES, n_images=5),
            r"^select .*'n_images': is num_images meant",
        ),
        (lambda m, f: look_at(IMAGES, m, timestep=[5]), 'look_at .* is timesteps meant'),
        (lambda m, f: save_features(f, 'out', m, pol='mean'), 'save_features .* is pool meant'),
        (lambda m, f: FeatureExtractor(m, 50, nonsense=1), r"'nonsense'\. It takes pretrained"),
    ],
)
def test_other_faces(tiny_dit, photos, tmp_path, monkeypatch, call, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TypeError, match=message):
        call(tiny_dit, photos)


@pytest.mark.parametrize(
    ('call', 'message'),
    [
        (lambda m: ASelecTDiT('sd3.5', timestep=5), "'stabilityai/stable-diffusion-3.5-medium' or"),
        (lambda m: FrozenDiT.from_pretrained('DiT-XL-2-215'), "Is 'facebook/DiT-XL-2-"),
        (lambda m: ASelecTDiT(m, feature='q', timestep=5), "Is 'query' meant"),
        (lambda m: ASelecTDiT(m, selection='papr'), "'papr'"),
        (
            lambda m: ASelecTDiT(m, selection=dict(criterion='FisherSkore')),
            "Is 'FisherScore' meant",
        ),
        (lambda m: ASelecTDiT(m, selection=dict(num_image=3)), "Is 'num_images' meant"),
        (lambda m: ASelecTDiT(m, timestep=5, noise=dict(sed=3)), "Is 'seed' meant"),
        (lambda m: ASelecTDiT(dict(model=m, vea='x')), "Is 'vae' meant"),
        (lambda m: ASelecTDiT(m, timestep=5, noise='fix'), "Is 'fixed' meant"),
    ],
)
def test_values_that_are_names(tiny_dit, call, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        call(tiny_dit)


# -- what would not be used --------------------------------------------------------------------
FIXED = "calibration says how timestep='auto' is selected, and timestep is 50"


@pytest.mark.parametrize(
    ('call', 'message'),
    [
        (lambda m, f: FeatureExtractor(m, 50, calibration=f), FIXED),
        (lambda m, f: FeaturesOnly(m, 50, calibration=f), FIXED),
        (lambda m, f: TransformersBackbone(m, 50, calibration=f), FIXED),
        (
            lambda m, f: DiTFeatures(m, 50, selection='paper').fit(IMAGES),
            "selection says how timestep='auto' is selected, and timestep is 50",
        ),
        (lambda m, f: FeatureExtractor(m, [50, 9], selection='paper'), r'timestep is \[50, 9\]'),
        (
            lambda m, f: save_features(f, 'out', m, timestep=50, selection='paper'),
            "selection says how timestep='auto' is selected, and timestep is 50",
        ),
        (lambda m, f: select_timestep(m, f, labels=[0, 1, 2]), 'labels are for a list of images'),
        (
            lambda m, f: select_timestep(FrozenDiT.from_pretrained(m), IMAGES, feature='key'),
            r"\['feature'\] describe a model, and model is loaded already",
        ),
        (
            lambda m, f: look_at(IMAGES, FrozenDiT.from_pretrained(m), blocks=[1], condition=2),
            r"\['blocks', 'condition'\] describe a model, and model is loaded already",
        ),
    ],
)
def test_what_would_not_be_used_is_refused(tiny_dit, photos, tmp_path, monkeypatch, call, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        call(tiny_dit, photos)


def test_a_config_may_inherit_what_a_fixed_timestep_does_not_use(tiny_dit, photos, caplog):
    with caplog.at_level('INFO'):
        ASelecTDiT(tiny_dit, timestep=50, calibration=str(photos))
    assert f'{FIXED}: not used' in caplog.text


def test_cache_dir_has_one_meaning_on_each_face(tiny_dit, photos, tmp_path, monkeypatch):
    monkeypatch.setenv('MMASELECT_CACHE', str(tmp_path / 'usual'))
    options = dict(timesteps=[0, 500], num_images=4)
    select_timestep(tiny_dit, IMAGES, cache_dir=tmp_path / 'a', progress=False, **options)
    selection = dict(options, cache_dir=tmp_path / 'b')
    FeatureExtractor(tiny_dit, 'auto', calibration=IMAGES, selection=selection)
    for folder in ('a', 'b'):
        assert list((tmp_path / folder).rglob('*.json')), 'the result of the selection'
    assert not list((tmp_path / 'usual').rglob('*.json'))
    for face in (
        lambda **given: FeatureExtractor(tiny_dit, 50, **given),
        lambda **given: ASelecTDiT(tiny_dit, timestep=50, **given),
        lambda **given: save_features(photos, tmp_path / 'out', tiny_dit, timestep=50, **given),
    ):
        both = r'cache_dir has two meanings: write pretrained=dict\(cache_dir.* or selection=dict'
        with pytest.raises(TypeError, match=both):
            face(cache_dir=tmp_path)


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        ('--config c.py --lora x --revision y', r'--lora, --revision would not be .* --config'),
        ('--pretrained M --no-selection --calibration f', '--calibration .* --no-selection'),
        ('--pretrained M --selection s.json --calibration f', '--calibration .*--selection FILE'),
    ],
)
def test_flags_of_look_that_would_not_be_used(flags, message):
    from mmaselect.cli.command import build_parser
    from mmaselect.cli.look import run

    args = build_parser().parse_args(['look', 'a.png', '--out', 'x.html', *flags.split()])
    with pytest.raises(ValueError, match=message):
        run(args)
