# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
from typing import ClassVar

import pytest
import torch
from diffusers import BriaPipeline, BriaTransformer2DModel, FlowMatchEulerDiscreteScheduler
from harness import FamilyProof, FeatureProof
from published import check_published
from test_flux import DOUBLE, SINGLE, Flux
from tiny_text import t5_encoder, t5_tokenizer
from tiny_vae import kl_vae

#: Name to width, blocks, and parameters in billions as published.
PUBLISHED = {
    'briaai/BRIA-3.2': (2304, 36, 3.78),  # '4B'
}


class Bria(Flux):
    # Of a generation with eight steps.
    timesteps = (625, 250)
    timestep = 625
    dynamic = True
    shift_factor = None

    def build(self, folder):
        BriaPipeline(
            transformer=BriaTransformer2DModel(
                in_channels=16,
                num_layers=DOUBLE,
                num_single_layers=SINGLE,
                attention_head_dim=16,
                num_attention_heads=2,
                joint_attention_dim=32,
                axes_dims_rope=[0, 8, 8],
            ),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=self.dynamic),
            vae=kl_vae(latent_channels=4, scale=0.13025, shift=self.shift_factor),
            text_encoder=t5_encoder(32),
            tokenizer=t5_tokenizer(max_length=128),
        ).save_pretrained(folder)

    def stock_pipeline(self, folder, **options):
        parts = {'image_encoder': None, 'feature_extractor': None}
        return super().stock_pipeline(folder, **parts, **options)

    def step(self, timestep):
        return (1000 - timestep) // 125

    def steps(self, pipeline, noisy, timestep):
        return self.steps_until(pipeline, noisy, self.step(timestep), of=8)

    def stock_level(self, pipeline, timestep):
        sigma = pipeline.scheduler.sigmas[self.step(timestep)]
        return (1 - sigma).item(), sigma.item()


class TestBria(Bria, FamilyProof):
    def test_vae_is_kept_in_float32(self, load):
        """As the pipeline keeps one without a shift."""
        dit = load(dtype='bf16')
        assert dit.codec.vae.dtype == torch.float32
        assert dit.transformer.dtype == torch.bfloat16


class TestBriaWithAPrompt(Bria, FeatureProof):
    """Fewer text tokens; the other way in which the pipeline computes noise levels."""

    prompt = 'a red bird'
    condition: ClassVar = {'prompt': 'a red bird', 'max_sequence_length': 32}
    call_options: ClassVar = {'guidance_scale': 1.0, 'max_sequence_length': 32}
    dynamic = False
    shift_factor = 0.1
    # Of a generation with four steps.
    timesteps = (667, 334)
    timestep = 667

    def step(self, timestep):
        return 3 - timestep // 333

    def steps(self, pipeline, noisy, timestep):
        return self.steps_until(pipeline, noisy, self.step(timestep), of=4)


@pytest.mark.parametrize('name', PUBLISHED)
def test_published_sizes(name):
    check_published(name, *PUBLISHED[name])
