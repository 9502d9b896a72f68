# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Models as they are published, built on the meta device: width, depth, number of weights."""

import dataclasses
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from mmengine.config import Config

from mmaselect.diffusion import known_families


@dataclasses.dataclass(frozen=True)
class Published:
    """What a model's page and the config.json of its transformer say.

    ``billions``: weights in the checkpoint as published, which is a rounded number; position
    tables that are stored count.
    """

    name: str
    transformer_class: str
    config: dict[str, Any]
    width: int
    blocks: int
    default_block: int
    billions: float


_SD3 = {
    'sample_size': 128,
    'patch_size': 2,
    'in_channels': 16,
    'out_channels': 16,
    'attention_head_dim': 64,
    'joint_attention_dim': 4096,
    'pooled_projection_dim': 2048,
    'num_layers': 24,
    'num_attention_heads': 24,
    'caption_projection_dim': 1536,
    'pos_embed_max_size': 192,
}
_FLUX = {
    'patch_size': 1,
    'in_channels': 64,
    'num_layers': 19,
    'num_single_layers': 38,
    'attention_head_dim': 128,
    'num_attention_heads': 24,
    'joint_attention_dim': 4096,
    'pooled_projection_dim': 768,
    'guidance_embeds': True,
}

PUBLISHED = [
    Published(
        'stabilityai/stable-diffusion-3-medium-diffusers',
        'SD3Transformer2DModel',
        _SD3,
        width=1536,
        blocks=24,
        default_block=9,
        billions=2.0,
    ),
    Published(
        'stabilityai/stable-diffusion-3.5-medium',
        'SD3Transformer2DModel',
        {
            **_SD3,
            'pos_embed_max_size': 384,
            'dual_attention_layers': tuple(range(13)),
            'qk_norm': 'rms_norm',
        },
        width=1536,
        blocks=24,
        default_block=9,
        billions=2.5,
    ),
    Published(
        'stabilityai/stable-diffusion-3.5-large',
        'SD3Transformer2DModel',
        {
            **_SD3,
            'num_layers': 38,
            'num_attention_heads': 38,
            'caption_projection_dim': 2432,
            'qk_norm': 'rms_norm',
        },
        width=2432,
        blocks=38,
        default_block=14,
        billions=8.1,
    ),
    Published(
        'black-forest-labs/FLUX.1-dev',
        'FluxTransformer2DModel',
        _FLUX,
        width=3072,
        blocks=57,
        default_block=28,
        billions=12.0,
    ),
]


@pytest.mark.parametrize('model', PUBLISHED, ids=lambda model: model.name)
def test_width_depth_and_weights(model):
    cls = getattr(diffusers, model.transformer_class)
    with torch.device('meta'):
        transformer = cls(**model.config)
    family = known_families()[model.transformer_class](dict(transformer.config))

    assert family.num_blocks == model.blocks
    assert family.default_block == model.default_block
    weights = sum(tensor.numel() for tensor in transformer.state_dict().values())
    assert weights == pytest.approx(model.billions * 1e9, rel=0.05)
    last = family.block(transformer, model.blocks - 1)
    assert last is [m for m in transformer.modules() if type(m) is type(last)][-1]
    assert family.width == family.channels(0, 'query') == model.width
    query = family.tap(transformer, model.default_block, 'query').module
    assert query.out_features == model.width


_FOLDER = Path(__file__).parents[3] / 'configs'
CONFIGS = [
    path for name in ('sd3', 'flux') for path in sorted(_FOLDER.glob(f'*/aselect_{name}*.py'))
]
NAMES = {model.name: model for model in PUBLISHED}


def test_every_reference_config_is_there():
    assert len(CONFIGS) == 6


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_configs_fit_the_models_that_they_name(path):
    model = Config.fromfile(path).model
    published = NAMES[model.backbone.pretrained]
    assert max(model.backbone.blocks) == published.default_block
    if 'neck' in model:
        assert model.neck.embed_dim == model.auxiliary_head.in_channels == published.width
        assert model.decode_head.in_channels == [published.width] * len(model.backbone.blocks)
    else:
        assert model.head.in_channels == published.width
    family = known_families()[published.transformer_class](published.config)
    assert family.parse_condition(model.backbone.condition)[0] == ''
