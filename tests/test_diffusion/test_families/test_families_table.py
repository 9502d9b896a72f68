# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""The table of models has every published model of every family, each with a test of its row."""

import json
from importlib import import_module
from pathlib import Path

import diffusers
import pytest
from diffusers import DiTTransformer2DModel
from published import MODELS, check_published, published_config

import mmaselect
from mmaselect import list_models
from mmaselect.diffusion import known_families, register_family

#: Families whose weights are published under no name that is known here.
UNPUBLISHED = {'flux3'}
WEIGHTS = Path(mmaselect.__file__).parent / 'weights'
#: Models in the package: name to width, blocks, and parameters in billions.
PUBLISHED = {
    'mmaselect://dit_cifar10': (224, 6, 0.00622),
    'mmaselect://dit_digits': (96, 5, 0.00104),
}
FILES = {
    path.stem.removeprefix('test_'): path
    for path in sorted(Path(__file__).parent.glob('test_*.py'))
}


def test_a_class_has_one_family():
    with pytest.raises(KeyError, match='DiTTransformer2DModel has a family already'):
        register_family(known_families()['DiTTransformer2DModel'])


def test_every_published_model_has_a_row_and_every_family_a_model():
    assert list_models() == sorted(list_models(), key=lambda name: MODELS[name][0].__module__)
    assert len(set(list_models())) == len(list_models())
    assert set(list_models()) == MODELS.keys()
    families = {cls.__module__.rpartition('.')[2] for cls in known_families().values()}
    listed = {family.__module__.rpartition('.')[2] for family, _ in MODELS.values()}
    assert listed == families - UNPUBLISHED


def test_every_row_is_checked_in_the_test_of_its_family():
    tested = dict(PUBLISHED)
    for file in FILES.keys() & {cls.__module__.rpartition('.')[2] for cls, _ in MODELS.values()}:
        tested |= import_module(FILES[file].stem).PUBLISHED
    assert tested.keys() == MODELS.keys()


@pytest.mark.parametrize('name', PUBLISHED)
def test_models_in_the_package(name):
    check_published(name, *PUBLISHED[name])
    folder = WEIGHTS / name.removeprefix('mmaselect://') / 'transformer'
    config = json.loads((folder / 'config.json').read_text(encoding='utf-8'))
    stated = {**DiTTransformer2DModel.load_config(folder), **published_config(name)}
    assert stated == config


def test_only_what_diffusers_converts_has_an_original_layout():
    """A layout that a family inherits by mistake would send its files to a converter of another."""
    for name, family in known_families().items():
        if family.original_layout is not None:
            assert len(family.original_layout.stacks) == len(family.stacks), name
            assert hasattr(getattr(diffusers, name), 'from_single_file'), name
