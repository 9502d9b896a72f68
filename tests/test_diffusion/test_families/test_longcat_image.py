# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
from typing import ClassVar

import pytest
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    LongCatImagePipeline,
    LongCatImageTransformer2DModel,
)
from harness import FamilyProof, FeatureProof
from published import check_published
from test_flux import DOUBLE, SINGLE, Flux
from tiny_chat import qwen25_vl
from tiny_text import qwen2_tokenizer
from tiny_vae import kl_vae

#: Name to width, blocks, and parameters in billions as published.
PUBLISHED = {
    'meituan-longcat/LongCat-Image': (3072, 30, 6.27),  # 'a compact 6B'
}

TEXT = 16


class LongCatImage(Flux):
    call_options: ClassVar = {'guidance_scale': 1.0, 'enable_prompt_rewrite': False}

    def build(self, folder):
        tokenizer = qwen2_tokenizer(max_length=1024)
        LongCatImagePipeline(
            transformer=LongCatImageTransformer2DModel(
                num_layers=DOUBLE,
                num_single_layers=SINGLE,
                attention_head_dim=16,
                num_attention_heads=2,
                joint_attention_dim=TEXT,
                pooled_projection_dim=TEXT,
                axes_dims_rope=[4, 6, 6],
            ),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
            vae=kl_vae(scale=0.3611, shift=0.1159),
            text_encoder=qwen25_vl(tokenizer, TEXT),
            tokenizer=tokenizer,
            # Of use for the rewriting of prompts alone.
            text_processor=None,
        ).save_pretrained(folder)

    def stock_pipeline(self, folder, **options):
        return super().stock_pipeline(folder, text_processor=None, **options)


class TestLongCatImage(LongCatImage, FamilyProof):
    pass


class TestLongCatImageWithAPrompt(LongCatImage, FeatureProof):
    """What is in quotation marks is tokenized letter by letter."""

    condition = prompt = 'a sign that says "bird"'


@pytest.mark.parametrize('name', PUBLISHED)
def test_published_sizes(name):
    check_published(name, *PUBLISHED[name])
