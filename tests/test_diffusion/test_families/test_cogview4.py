# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
import numpy as np
import pytest
from diffusers import (
    CogView4Pipeline,
    CogView4Transformer2DModel,
    FlowMatchEulerDiscreteScheduler,
)
from diffusers.pipelines.cogview4.pipeline_cogview4 import calculate_shift
from harness import FamilyProof, FeatureProof, item, last_tokens
from published import check_published
from tiny_language import glm, glm_tokenizer
from tiny_vae import kl_vae

from mmaselect.diffusion import FrozenDiT
from mmaselect.diffusion.families.cogview4 import CogView4Process

#: Name to width, blocks, and parameters in billions as published.
PUBLISHED = {
    'THUDM/CogView4-6B': (4096, 28, 6.37),  # '6B'
}

#: Of THUDM/CogView4-6B.
SCHEDULER = {
    'base_shift': 0.25,
    'max_shift': 0.75,
    'base_image_seq_len': 256,
    'use_dynamic_shifting': True,
    'time_shift_type': 'linear',
}

TEXT = 8


def stock_schedule(scheduler, num_tokens):
    """All of the training steps, by what the pipeline does with the steps of a generation."""
    config = scheduler.config
    steps = np.linspace(config.num_train_timesteps, 1.0, config.num_train_timesteps)
    steps = steps.astype(np.int64).astype(np.float32)
    mu = calculate_shift(num_tokens, config.base_image_seq_len, config.base_shift, config.max_shift)
    scheduler.set_timesteps(timesteps=steps, sigmas=steps / config.num_train_timesteps, mu=mu)
    return scheduler


class CogView4:
    num_blocks = 4
    stride = 16
    sizes = ((128, 128), (64, 96), (96, 32))

    def build(self, folder):
        tokenizer = glm_tokenizer()
        CogView4Pipeline(
            tokenizer=tokenizer,
            text_encoder=glm(tokenizer, TEXT),
            vae=kl_vae(4, scale=1.0, shift=0.0, levels=4),
            transformer=CogView4Transformer2DModel(
                in_channels=4,
                out_channels=4,
                num_layers=self.num_blocks,
                attention_head_dim=8,
                num_attention_heads=2,
                text_embed_dim=TEXT,
                time_embed_dim=8,
                condition_dim=8,
                rope_axes_dim=(16, 16),
                sample_size=8,
            ),
            scheduler=FlowMatchEulerDiscreteScheduler(**SCHEDULER),
        ).save_pretrained(folder)

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

    def steps(self, pipeline, noisy, timestep):
        return {'num_inference_steps': 1, 'timesteps': [timestep]}


class TestCogView4(CogView4, FamilyProof):
    pass


class TestCogView4WithAPrompt(CogView4, FeatureProof):
    condition = prompt = 'a red bird on a branch'


@pytest.mark.parametrize('num_tokens', [256, 1024, 4096])
def test_noise_levels_are_those_of_the_pipeline(num_tokens):
    scheduler = stock_schedule(FlowMatchEulerDiscreteScheduler(**SCHEDULER), num_tokens)
    process = CogView4Process({'num_train_timesteps': 1000, **SCHEDULER})
    for timestep in (1, 50, 300, 999):
        level = process.at(timestep, num_tokens)
        assert level.sigma == pytest.approx(scheduler.sigmas[1000 - timestep].item(), rel=1e-5)
        assert level.model_time == scheduler.timesteps[1000 - timestep].item() == timestep


def test_its_process_is_used(saved):
    folder = saved(TestCogView4)
    assert isinstance(FrozenDiT.from_pretrained(folder).process, CogView4Process)


@pytest.mark.parametrize('name', PUBLISHED)
def test_published_sizes(name):
    check_published(name, *PUBLISHED[name])
