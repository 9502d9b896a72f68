# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
from typing import ClassVar

import pytest
import torch
from diffusers import (
    AutoencoderKLHunyuanImage,
    FlowMatchEulerDiscreteScheduler,
    HunyuanImagePipeline,
    HunyuanImageTransformer2DModel,
)
from harness import FamilyProof, FeatureProof, first_tokens, item
from published import check_published, published_config
from tiny_chat import qwen25_vl
from tiny_text import qwen2_tokenizer, t5_encoder
from transformers import ByT5Tokenizer

from mmaselect.diffusion.families.hunyuan_image import HunyuanImageFamily

#: Name to width, blocks, and parameters in billions as published.
PUBLISHED = {
    'hunyuanvideo-community/HunyuanImage-2.1-Diffusers': (
        3584,
        60,
        17.45,
    ),  # 34.9 GB at 16 bit; '17B'
}

TEXT, GLYPHS, DOUBLE, SINGLE = 16, 32, 2, 3


class HunyuanImage:
    num_blocks = DOUBLE + SINGLE
    stride = 4
    sizes = ((32, 32), (16, 24), (24, 8))
    stacks = ('transformer_blocks', 'single_transformer_blocks')
    call_options: ClassVar = {}

    @property
    def chosen_blocks(self):
        return (0, 1, 2, 4)  # the last and the first of the two stacks, too

    def build(self, folder):
        torch.manual_seed(2)
        vae = AutoencoderKLHunyuanImage(
            in_channels=3,
            out_channels=3,
            latent_channels=8,
            block_out_channels=(32, 32, 32),
            layers_per_block=1,
            spatial_compression_ratio=4,
            sample_size=64,
            scaling_factor=0.75289,
        )
        tokenizer = qwen2_tokenizer(max_length=1100)
        HunyuanImagePipeline(
            transformer=HunyuanImageTransformer2DModel(
                in_channels=8,
                out_channels=8,
                num_attention_heads=2,
                attention_head_dim=16,
                num_layers=DOUBLE,
                num_single_layers=SINGLE,
                num_refiner_layers=1,
                text_embed_dim=TEXT,
                text_embed_2_dim=GLYPHS,
                rope_axes_dim=(8, 8),
            ),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
            vae=vae.eval(),
            text_encoder=qwen25_vl(tokenizer, TEXT, layers=3),
            tokenizer=tokenizer,
            text_encoder_2=t5_encoder(GLYPHS, vocab=384),
            tokenizer_2=ByT5Tokenizer(),
        ).save_pretrained(folder)

    def points(self, block):
        path = f'transformer_blocks.{block}'
        if block >= DOUBLE:
            path = f'single_transformer_blocks.{block - DOUBLE}'
        return {
            'query': (f'{path}.attn.to_q', first_tokens),
            'key': (f'{path}.attn.to_k', first_tokens),
            'value': (f'{path}.attn.to_v', first_tokens),
            'attention': (f'{path}.attn', item(0)),
            'output': (path, item(0)),
        }

    def post_points(self, block):
        return self.points(block)['attention'][0], first_tokens


class TestHunyuanImage(HunyuanImage, FamilyProof):
    pass


class TestHunyuanImageWithAPrompt(HunyuanImage, FeatureProof):
    """What is in quotation marks is embedded by ByT5 as well."""

    condition = prompt = 'a sign that says "bird"'


def test_distilled_and_refiner_are_refused():
    config = {
        **published_config('hunyuanvideo-community/HunyuanImage-2.1-Diffusers'),
        'patch_size': (1, 1),
    }
    with pytest.raises(ValueError, match=r'distilled .*use_meanflow.*HunyuanImage-2\.1-Diffusers'):
        HunyuanImageFamily({**config, 'use_meanflow': True})
    with pytest.raises(ValueError, match=r'refiner .*second image'):
        HunyuanImageFamily({**config, 'patch_size': (1, 1, 1)})


@pytest.mark.parametrize('name', PUBLISHED)
def test_published_sizes(name):
    check_published(name, *PUBLISHED[name])
