# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
from typing import ClassVar

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    GlmImagePipeline,
    GlmImageTransformer2DModel,
)
from harness import FamilyProof, item, last_tokens
from published import check_published
from tiny_text import t5_encoder
from transformers import ByT5Tokenizer

from mmaselect.diffusion import FrozenDiT

#: Name to width, blocks, and parameters in billions as published.
PUBLISHED = {
    'zai-org/GLM-Image': (4096, 30, 7),
}

TEXT, CODES = 32, 16


class TestGlmImage(FamilyProof):
    """What its pipeline's guidance takes for no prompt at all."""

    num_blocks = 4
    stride = 16
    sizes = ((128, 128), (64, 96), (96, 32))
    # Each step calls the transformer with the prompt first, and then without: what is recorded last
    # stays.
    call_options: ClassVar = {'guidance_scale': 2.0}
    prompt = 'a sign that says "bird"'

    def build(self, folder):
        torch.manual_seed(2)
        vae = AutoencoderKL(
            block_out_channels=(4,) * 4,
            down_block_types=('DownEncoderBlock2D',) * 4,
            up_block_types=('UpDecoderBlock2D',) * 4,
            latent_channels=4,
            norm_num_groups=2,
            layers_per_block=1,
            latents_mean=[0.1, -0.2, 0.3, 0.4],
            latents_std=[0.9, 1.1, 0.8, 1.3],
        )
        GlmImagePipeline(
            tokenizer=ByT5Tokenizer(),
            processor=None,
            text_encoder=t5_encoder(TEXT, vocab=384),
            vision_language_encoder=None,
            vae=vae.eval(),
            transformer=GlmImageTransformer2DModel(
                in_channels=4,
                out_channels=4,
                num_layers=self.num_blocks,
                attention_head_dim=8,
                num_attention_heads=2,
                text_embed_dim=TEXT,
                time_embed_dim=8,
                condition_dim=8,
                prior_vq_quantizer_codebook_size=CODES,
            ),
            scheduler=FlowMatchEulerDiscreteScheduler(
                base_shift=0.25,
                max_shift=0.75,
                use_dynamic_shifting=True,
                time_shift_type='linear',
            ),
        ).save_pretrained(folder)

    def stock_pipeline(self, folder, **options):
        # The prior tokens are given to its call, which then does without them.
        return super().stock_pipeline(
            folder, processor=None, vision_language_encoder=None, **options
        )

    def steps(self, pipeline, noisy, timestep):
        tokens = noisy[0, 0].numel() // 4
        return {
            'num_inference_steps': 1,
            'timesteps': [timestep],
            'prior_token_ids': torch.randint(0, CODES, (1, tokens)),
        }

    def stock_latent(self, pipeline, images):
        mean, std = (
            torch.tensor(pipeline.vae.config[name]).view(1, -1, 1, 1)
            for name in ('latents_mean', 'latents_std')
        )
        return (pipeline.vae.encode(images).latent_dist.mode() - mean) / std

    def points(self, block):
        path = f'transformer_blocks.{block}'
        return {
            'query': (f'{path}.attn1.to_q', last_tokens),
            'key': (f'{path}.attn1.to_k', last_tokens),
            'value': (f'{path}.attn1.to_v', last_tokens),
            'attention': (f'{path}.attn1', item(0)),
            'output': (path, item(0)),
        }

    def post_points(self, block):
        return f'transformer_blocks.{block}.attn1', last_tokens

    def test_a_prompt_is_refused(self, folder):
        with pytest.raises(ValueError, match=r"'a bird' does not fit GLM-Image.*Leave condition"):
            FrozenDiT.from_pretrained(folder, condition='a bird')


@pytest.mark.parametrize('name', PUBLISHED)
def test_published_sizes(name):
    check_published(name, *PUBLISHED[name])
