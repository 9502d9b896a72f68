# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Published sizes; that features equal stock diffusers is proved in ``test_frozen_dit.py``."""

import pytest
import torch
from diffusers import DiTTransformer2DModel
from published import check_published

_XL_256 = {
    'sample_size': 32,
    'patch_size': 2,
    'in_channels': 4,
    'out_channels': 8,
    'num_layers': 28,
    'attention_head_dim': 72,
    'num_attention_heads': 16,
    'num_embeds_ada_norm': 1000,
}
_XL_512 = {**_XL_256, 'sample_size': 64}

# 0.675 billion in the paper; diffusers gives every block a copy of the embedding of time and class.
#: Name, class, config as on the model page, width, blocks, parameters in billions as published.
PUBLISHED = [
    ('facebook/DiT-XL-2-256', DiTTransformer2DModel, _XL_256, 1152, 28, 0.75),
    ('facebook/DiT-XL-2-512', DiTTransformer2DModel, _XL_512, 1152, 28, 0.75),
]


@pytest.mark.parametrize('model', PUBLISHED, ids=lambda model: model[0])
def test_published_sizes(model):
    check_published(model)


def test_the_papers_number_of_weights():
    with torch.device('meta'):
        model = DiTTransformer2DModel(**_XL_256)
    copies = [block.norm1.emb for block in model.transformer_blocks][1:]
    repeated = sum(p.numel() for copy in copies for p in copy.parameters())
    total = sum(p.numel() for p in model.parameters())
    assert total - repeated == pytest.approx(0.675e9, rel=1e-3)
