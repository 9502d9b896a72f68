# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
from typing import ClassVar

import pytest
import torch
from diffusers import (
    BriaFibo2Pipeline,
    BriaFibo2Transformer2DModel,
    FlowMatchEulerDiscreteScheduler,
)
from harness import FamilyProof, FeatureProof, last_tokens
from published import check_published
from tiny_chat import qwen3_vl_chat, qwen3_vl_processor
from tiny_vae import flux2_vae

from mmaselect.diffusion.families.bria_fibo2 import BriaFibo2Family

#: Name to width, blocks, and parameters in billions as published.
PUBLISHED = {
    'briaai/Fibo-2.0-dev': (3584, 44, 8.1),
}

TEXT = 8


class BriaFibo2:
    num_blocks = 4
    stride = 8
    stacks = ('layers',)
    # Of a generation with eight steps.
    timesteps = (625, 250)
    timestep = 625
    call_options: ClassVar = {'guidance_scale': 1.0, 'render_text_images': False}

    def build(self, folder):
        processor = qwen3_vl_processor()
        transformer = BriaFibo2Transformer2DModel(
            in_channels=4,
            dim=32,
            n_layers=self.num_blocks,
            n_refiner_layers=1,
            n_heads=2,
            cap_feat_dim=3 * TEXT,
            injection_layer_ids=(0, 1, 1, 2, 2),
            perceiver_num_layers=1,
            min_num_gist_tokens=4,
            max_num_gist_tokens=16,
            gist_step=4,
            gist_min_text_len=8,
            gist_max_text_len=64,
            axes_dims=(4, 6, 6),
            axes_lens=(32, 16, 16),
        )
        # Zero as constructed, in which case no block would read the text.
        for block in transformer.layers[:3]:
            torch.nn.init.constant_(block.cross_attn_gate, 0.7)
        BriaFibo2Pipeline(
            transformer=transformer,
            scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
            vae=flux2_vae(),
            # The pipeline names layers up to 35.
            text_encoder=qwen3_vl_chat(processor, TEXT, layers=36),
            processor=processor,
        ).save_pretrained(folder)

    def step(self, timestep):
        return (1000 - timestep) // 125

    def steps(self, pipeline, noisy, timestep):
        return self.steps_until(pipeline, noisy, self.step(timestep), of=8)

    def stock_level(self, pipeline, timestep):
        sigma = pipeline.scheduler.sigmas[self.step(timestep)]
        return (1 - sigma).item(), sigma.item()

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

    def stock_latent(self, pipeline, images):
        return pipeline.prepare_image_latents([images], 1, 'cpu', torch.float32)[0]


class TestBriaFibo2(BriaFibo2, FamilyProof):
    def test_too_large_an_image_is_refused(self, load):
        load().encode(torch.zeros(1, 3, 128, 128))
        with pytest.raises(ValueError, match=r'16x16 tokens.*16x17.*128x128 pixels'):
            load().encode(torch.zeros(1, 3, 128, 129))


class TestBriaFibo2WithACaption(BriaFibo2, FeatureProof):
    """JSON with blanks, an empty value and a text to draw: more gist tokens than for no prompt."""

    condition = prompt = (
        '{"objects": [], "short_description": "a red bird", "text_render": [{"text": "bird"}]}'
    )


def test_captions_are_put_in_the_trained_form(saved):
    folder = saved(TestBriaFibo2)
    pipeline = BriaFibo2Pipeline.from_pretrained(folder)
    family = BriaFibo2Family(dict(pipeline.transformer.config))
    seen = [
        family.embed(pipeline, prompt)['encoder_hidden_states']
        for prompt in ('{"lighting": {}, "style_medium": "photo"}', '{"style_medium":"photo"}')
    ]
    assert torch.equal(*seen)
    assert not torch.equal(seen[0], family.embed(pipeline, 'photo')['encoder_hidden_states'])


@pytest.mark.parametrize('name', PUBLISHED)
def test_published_sizes(name):
    check_published(name, *PUBLISHED[name])
