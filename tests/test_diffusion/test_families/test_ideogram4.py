# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
import math
from typing import ClassVar

import pytest
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    Ideogram4Pipeline,
    Ideogram4Transformer2DModel,
)
from harness import FamilyProof, FeatureProof, last_tokens
from published import check_published
from tiny_chat import chat_tokenizer, qwen3_vl
from tiny_vae import flux2_vae

#: Name to width, blocks, and parameters in billions as published.
PUBLISHED = {
    'ideogram-ai/ideogram-4-nf4-diffusers': (4608, 34, 9.3),
}

# Layers of the language model that are read; the deepest is its 36th.
TEXT, LAYERS = 8, 13


class Ideogram4:
    num_blocks = 4
    stride = 8

    def transformer(self):
        return Ideogram4Transformer2DModel(
            in_channels=16,
            num_layers=self.num_blocks,
            attention_head_dim=12,
            num_attention_heads=2,
            intermediate_size=32,
            adaln_dim=8,
            llm_features_dim=LAYERS * TEXT,
            rope_theta=10000,
            mrope_section=(2, 2, 2),
        )

    def build(self, folder):
        tokenizer = chat_tokenizer()
        Ideogram4Pipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(),
            vae=flux2_vae(),
            text_encoder=qwen3_vl(tokenizer, TEXT, layers=36),
            tokenizer=tokenizer,
            transformer=self.transformer(),
            unconditional_transformer=self.transformer(),
        ).save_pretrained(folder)

    @property
    def call_options(self):
        return {
            'guidance_scale': 1.0,
            'guidance_schedule': None,
            'max_sequence_length': self.prompt_length,
        }

    def steps(self, pipeline, noisy, timestep):
        # The second of two steps is at the median of its schedule, which moves with the size.
        pixels = noisy[0, 0].numel() * self.stride**2
        odds = timestep / (1000 - timestep)
        middle = math.log(odds) - 0.5 * math.log(pixels / 512**2)
        return {**self.steps_until(pipeline, noisy, 1, of=2), 'mu': middle}

    def stock_level(self, pipeline, timestep):
        sigma = pipeline.scheduler.sigmas[1]
        return (1 - sigma).item(), sigma.item()

    def stock_latents(self, pipeline, noisy):
        return noisy.flatten(2).transpose(1, 2)

    def stock_latent(self, pipeline, images):
        # What its call does before it decodes, backwards.
        vae = pipeline.vae
        latent = vae.encode(images).latent_dist.mode()
        batch, channels, height, width = latent.shape
        patches = latent.view(batch, channels, height // 2, 2, width // 2, 2)
        patches = patches.permute(0, 2, 4, 3, 5, 1).flatten(3)
        std = torch.sqrt(vae.bn.running_var + vae.config.batch_norm_eps)
        return ((patches - vae.bn.running_mean) / std).permute(0, 3, 1, 2)

    def points(self, block):
        path = f'layers.{block}'
        return {
            'query': (f'{path}.attention.to_q', last_tokens),
            'key': (f'{path}.attention.to_k', last_tokens),
            'value': (f'{path}.attention.to_v', last_tokens),
            'attention': (f'{path}.attention', last_tokens),
            'output': (path, last_tokens),
        }

    def post_points(self, block):
        return f'layers.{block}.attention', last_tokens


class TestIdeogram4(Ideogram4, FamilyProof):
    """The empty prompt: what the template puts around it."""

    stacks = ('layers',)
    #: Of `<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n`, letter by letter.
    prompt_length = 1 + 5 + 1 + 1 + 1 + 10


class TestIdeogram4WithAPrompt(Ideogram4, FeatureProof):
    condition = prompt = 'a red bird'
    prompt_length: ClassVar = TestIdeogram4.prompt_length + len(prompt)

    def test_padding_is_masked(self, load, pipeline):
        """By default the pipeline pads: equal but for rounding."""
        dit = load(blocks=self.num_blocks - 1, features='output')
        size = self.sizes[1]
        latent, noise, noisy, _ = self.noisy(dit, size)
        features = dit.features(latent, self.timestep, noise)
        self.prompt_length = 2 * self.prompt_length
        expected = self.stock_features(pipeline, noisy, size)
        key = (self.num_blocks - 1, 'output')
        assert torch.allclose(features[key], expected[key], atol=1e-5)


@pytest.mark.parametrize('name', PUBLISHED)
def test_published_sizes(name):
    check_published(name, *PUBLISHED[name])
