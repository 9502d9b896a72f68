# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
from typing import ClassVar

import pytest
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    PRXPipeline,
    PRXPixelPipeline,
    PRXTransformer2DModel,
)
from harness import FamilyProof, FeatureProof, item, last_tokens
from published import check_published
from tiny_chat import qwen3_vl
from tiny_language import gemma2
from tiny_text import gemma_tokenizer, qwen2_tokenizer
from tiny_vae import kl_vae

#: Name to width, blocks, and parameters in billions as published.
PUBLISHED = {
    'Photoroom/prx-512-t2i-sft': (1792, 16, 1.17),
    'Photoroom/prxpixel-t2i': (3584, 24, 7),  # '~7B'
}

TEXT, WIDTH = 8, 32


class PRX:
    num_blocks = 4
    stride = 8
    stacks = ('blocks',)
    # Of a generation with four steps.
    timesteps = (667, 334)
    timestep = 667
    call_options: ClassVar = {'guidance_scale': 1.0, 'use_resolution_binning': False}

    def build(self, folder):
        tokenizer = gemma_tokenizer(max_length=32)
        transformer = PRXTransformer2DModel(
            in_channels=16,
            context_in_dim=TEXT,
            hidden_size=WIDTH,
            mlp_ratio=2.0,
            num_heads=2,
            depth=self.num_blocks,
            axes_dim=[8, 8],
        )
        # Zero as constructed: no block would do anything.
        for block in transformer.blocks:
            for parameter in block.modulation.parameters():
                torch.nn.init.normal_(parameter, std=0.2)
        PRXPipeline(
            transformer=transformer,
            scheduler=FlowMatchEulerDiscreteScheduler(),
            text_encoder=gemma2(tokenizer, TEXT),
            tokenizer=tokenizer,
            vae=kl_vae(scale=0.3611, shift=0.1159),
        ).save_pretrained(folder)

    def step(self, timestep):
        return 3 - timestep // 333

    def steps(self, pipeline, noisy, timestep):
        return self.steps_until(pipeline, noisy, self.step(timestep), of=4)

    def stock_level(self, pipeline, timestep):
        sigma = pipeline.scheduler.sigmas[self.step(timestep)]
        return (1 - sigma).item(), sigma.item()

    def points(self, block):
        path, whole = f'blocks.{block}', item(slice(None))

        def part(index):
            return lambda output, n: output.split(WIDTH, dim=2)[index]

        fused = f'{path}.attention.img_qkv_proj'
        return {
            'query': (fused, part(0)),
            'key': (fused, part(1)),
            'value': (fused, part(2)),
            'attention': (f'{path}.attention', whole),
            'output': (path, whole),
        }

    def post_points(self, block):
        # Queries are the image's alone; keys have the text's before them.
        return f'blocks.{block}.attention', last_tokens


class TestPRX(PRX, FamilyProof):
    pass


class TestPRXWithAPrompt(PRX, FeatureProof):
    condition = prompt = 'a red bird'


class PRXPixel(PRX):
    """No VAE, noise of twice the usual strength, and the size of the image embedded."""

    stride = 4
    sizes = ((32, 32), (16, 24), (24, 8))

    def build(self, folder):
        tokenizer = qwen2_tokenizer(max_length=300)
        transformer = PRXTransformer2DModel(
            in_channels=3,
            patch_size=4,
            context_in_dim=TEXT,
            hidden_size=WIDTH,
            mlp_ratio=2.0,
            num_heads=2,
            depth=self.num_blocks,
            axes_dim=[8, 8],
            bottleneck_size=12,
            resolution_embeds=True,
        )
        for block in transformer.blocks:
            for parameter in block.modulation.parameters():
                torch.nn.init.normal_(parameter, std=0.2)
        PRXPixelPipeline(
            transformer=transformer,
            scheduler=FlowMatchEulerDiscreteScheduler(),
            text_encoder=qwen3_vl(tokenizer, TEXT).language_model,
            tokenizer=tokenizer,
            prompt_max_tokens=32,
            noise_scale=1.75,
        ).save_pretrained(folder)

    def stock_level(self, pipeline, timestep):
        alpha, sigma = super().stock_level(pipeline, timestep)
        return alpha, sigma * pipeline.config.noise_scale

    def stock_latent(self, pipeline, images):
        return images


class TestPRXPixel(PRXPixel, FamilyProof):
    pass


class TestPRXPixelWithAPrompt(PRXPixel, FeatureProof):
    condition = prompt = ' a red bird &amp; co '


@pytest.mark.parametrize('name', PUBLISHED)
def test_published_sizes(name):
    check_published(name, *PUBLISHED[name])
