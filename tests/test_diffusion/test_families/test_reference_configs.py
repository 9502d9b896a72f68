# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""The configs of the reference settings fit the models that they name."""

from pathlib import Path

import pytest
import test_flux
import test_sd3
from mmengine.config import Config

from mmaselect.diffusion import known_families

_FOLDER = Path(__file__).parents[3] / 'configs'
CONFIGS = [
    path for name in ('sd3', 'flux') for path in sorted(_FOLDER.glob(f'*/aselect_{name}*.py'))
]
MODELS = {model[0]: model for model in (*test_sd3.PUBLISHED, *test_flux.PUBLISHED)}


def test_every_reference_config_is_there():
    assert len(CONFIGS) == 6


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_configs_fit_the_models_that_they_name(path):
    model = Config.fromfile(path).model
    _, cls, config, width, *_ = MODELS[model.backbone.pretrained]
    family = known_families()[cls.__name__](config)
    assert set(model.backbone.blocks) == {family.default_block}
    if 'neck' in model:
        assert model.neck.embed_dim == model.auxiliary_head.in_channels == width
        assert model.decode_head.in_channels == [width] * len(model.backbone.blocks)
    else:
        assert model.head.in_channels == width
    assert family.parse_condition(model.backbone.condition)[0] == ''
