# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""The table of models says what the code does, for models as they are published."""

import json
from importlib import import_module
from pathlib import Path

import pytest
import torch
from diffusers import DiTTransformer2DModel

import mmaselect
from mmaselect import list_models, model_info
from mmaselect.diffusion import known_families, register_family

#: Families whose weights are published under no name that is known here.
UNPUBLISHED = {'Flux3Transformer2DModel'}
WEIGHTS = Path(mmaselect.__file__).parent / 'weights'
MODELS = {
    model[0]: model
    for path in sorted(Path(__file__).parent.glob('test_*.py'))
    if 'PUBLISHED = [' in path.read_text(encoding='utf-8') and path != Path(__file__)
    for model in import_module(path.stem).PUBLISHED
}
for folder in WEIGHTS.iterdir():
    MODELS[f'mmaselect://{folder.name}'] = (
        f'mmaselect://{folder.name}',
        DiTTransformer2DModel,
        json.loads((folder / 'transformer' / 'config.json').read_text(encoding='utf-8')),
    )


def gigabytes(model):
    """GiB of a model's weights, and of tables that are stored with them, at 16 bit."""
    return sum(tensor.numel() for tensor in model.state_dict().values()) * 2 / 2**30


def test_a_class_has_one_family():
    with pytest.raises(KeyError, match='DiTTransformer2DModel has a family already'):
        register_family(known_families()['DiTTransformer2DModel'])


def test_every_published_model_has_a_row_and_every_family_a_model():
    assert set(list_models()) == MODELS.keys()
    listed = {model_info(name).transformer_class for name in list_models()}
    assert listed == known_families().keys() - UNPUBLISHED


@pytest.mark.parametrize('name', MODELS)
def test_row(name):
    _, cls, config, *_ = MODELS[name]
    with torch.device('meta'):
        whole = cls(**{key: value for key, value in config.items() if key[0] != '_'})
    family = known_families()[cls.__name__](dict(whole.config))
    needed = family.default_block + 1
    with torch.device('meta'):
        built = cls.from_config({**dict(whole.config), **family.build_overrides(needed)})
    family.trim(built, needed)

    row = model_info(name)
    file = type(family).__module__.rpartition('.')[2]
    assert (row.family, row.transformer_class) == (file, cls.__name__)
    assert (row.width, row.blocks) == (family.width, family.num_blocks)
    assert row.default_block == family.default_block
    assert row.stride % family.patch_size == 0
    parameters = sum(parameter.numel() for parameter in whole.parameters())
    assert row.millions == round(parameters / 1e6)
    assert (row.held, row.whole) == (round(gigabytes(built), 1), round(gigabytes(whole), 1))
