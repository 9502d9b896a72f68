# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
from typing import ClassVar

import pytest
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    OvisImagePipeline,
    OvisImageTransformer2DModel,
)
from harness import FamilyProof, FeatureProof
from published import check_published
from test_flux import DOUBLE, SINGLE, Flux
from tiny_chat import chat_tokenizer, qwen3
from tiny_vae import kl_vae

#: Name to width, blocks, and parameters in billions as published.
PUBLISHED = {
    'AIDC-AI/Ovis-Image-7B': (3072, 33, 7.37),  # '7B'
}

TEXT = 16


class OvisImage(Flux):
    call_options: ClassVar = {'guidance_scale': 1.0}

    def build(self, folder):
        OvisImagePipeline(
            transformer=OvisImageTransformer2DModel(
                num_layers=DOUBLE,
                num_single_layers=SINGLE,
                attention_head_dim=16,
                num_attention_heads=2,
                joint_attention_dim=TEXT,
                axes_dims_rope=(4, 6, 6),
            ),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
            vae=kl_vae(scale=0.3611, shift=0.1159),
            text_encoder=qwen3(TEXT, layers=2).model,
            tokenizer=chat_tokenizer(),
        ).save_pretrained(folder)


class TestOvisImage(OvisImage, FamilyProof):
    pass


class TestOvisImageWithAPrompt(OvisImage, FeatureProof):
    condition = prompt = 'a red bird'


@pytest.mark.parametrize('name', PUBLISHED)
def test_published_sizes(name):
    check_published(name, *PUBLISHED[name])
