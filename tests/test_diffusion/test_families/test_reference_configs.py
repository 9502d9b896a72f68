# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""The configs of the reference settings fit the models that they name."""

from pathlib import Path

import pytest
from mmengine.config import Config
from published import MODELS

from mmaselect.diffusion.place_search import BlockSearch

_FOLDER = Path(__file__).parents[3] / 'configs'
CONFIGS = [
    path for name in ('sd3', 'flux') for path in sorted(_FOLDER.glob(f'*/aselect_{name}*.py'))
]


def test_every_reference_config_is_there():
    assert len(CONFIGS) >= 6
    assert {(path.parent.name, path.stem.split('_')[1]) for path in CONFIGS} == {
        (task, model)
        for task in ('classification', 'segmentation')
        for model in ('flux1-dev', 'sd3-medium', 'sd35-medium')
    }


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_configs_fit_the_models_that_they_name(path):
    model = Config.fromfile(path).model
    cls, published = MODELS[model.backbone.pretrained]
    family = cls(published.config)
    blocks = model.backbone.blocks
    is_open = isinstance(blocks, str)
    count = BlockSearch.parse(blocks).count if is_open else len(blocks)
    assert is_open or set(blocks) == {family.default_block}
    if 'neck' in model:
        assert model.neck.embed_dim == model.auxiliary_head.in_channels == family.width
        assert model.decode_head.in_channels == [family.width] * count
    else:
        assert model.head.in_channels == family.width
    assert family.parse_condition(model.backbone.condition)[0] == ''
