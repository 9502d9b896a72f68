# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
from typing import ClassVar

import pytest
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
)
from harness import FamilyProof, FeatureProof, item, last_tokens
from published import check_published, published_config
from tiny_chat import chat_tokenizer, mistral3, pixtral_processor, qwen3
from tiny_vae import flux2_vae

from mmaselect.diffusion.families.flux2 import Flux2Family
from mmaselect.diffusion.process import FlowMatchingProcess

#: Name to width, blocks, and parameters in billions as published.
PUBLISHED = {
    'black-forest-labs/FLUX.2-dev': (6144, 56, 32),
    'black-forest-labs/FLUX.2-klein-4B': (3072, 25, 4),
    'black-forest-labs/FLUX.2-klein-9B': (4096, 32, 9),
}

SCHEDULER = {'shift': 3.0, 'use_dynamic_shifting': True}

DOUBLE, SINGLE, WIDTH, TEXT = 2, 3, 32, 8


class Flux2:
    num_blocks = DOUBLE + SINGLE
    stride = 8
    stacks = ('transformer_blocks', 'single_transformer_blocks')
    pipeline_class = Flux2KleinPipeline
    guidance = None
    call_options: ClassVar = {'guidance_scale': 1.0}

    @property
    def chosen_blocks(self):
        return (0, 1, 2, 4)  # the last and the first of the two stacks, too

    def encoder(self):
        return {'text_encoder': qwen3(TEXT, layers=28), 'tokenizer': chat_tokenizer()}

    def build(self, folder):
        self.pipeline_class(
            transformer=Flux2Transformer2DModel(
                in_channels=16,
                num_layers=DOUBLE,
                num_single_layers=SINGLE,
                attention_head_dim=16,
                num_attention_heads=2,
                joint_attention_dim=3 * TEXT,
                timestep_guidance_channels=16,
                axes_dims_rope=(4, 4, 4, 4),
                guidance_embeds=self.guidance is not None,
            ),
            scheduler=FlowMatchEulerDiscreteScheduler(**SCHEDULER),
            vae=flux2_vae(),
            **self.encoder(),
        ).save_pretrained(folder)

    def points(self, block):
        if block < DOUBLE:
            path = f'transformer_blocks.{block}'
            return {
                'query': (f'{path}.attn.to_q', last_tokens),
                'key': (f'{path}.attn.to_k', last_tokens),
                'value': (f'{path}.attn.to_v', last_tokens),
                'attention': (f'{path}.attn', item(0)),
                'output': (path, item(1)),
            }
        path = f'single_transformer_blocks.{block - DOUBLE}'
        fused = f'{path}.attn.to_qkv_mlp_proj'

        def part(index):  # Q, K, V, then twice the hidden size of the feed-forward part
            return lambda output, n: output.split([WIDTH] * 3 + [6 * WIDTH], dim=2)[index][:, -n:]

        return {
            'query': (fused, part(0)),
            'key': (fused, part(1)),
            'value': (fused, part(2)),
            'output': (path, last_tokens),
        }

    def post_points(self, block):
        if block < DOUBLE:
            return f'transformer_blocks.{block}.attn', last_tokens
        return f'single_transformer_blocks.{block - DOUBLE}.attn', last_tokens

    def stock_features(self, pipeline, noisy, size, timestep=None):
        """And the attention of single-stream blocks, from the input of their joint projection."""
        caught = {}
        blocks = [b for b in self.chosen_blocks if b >= DOUBLE]
        hooks = [
            pipeline.transformer.single_transformer_blocks[
                block - DOUBLE
            ].attn.to_out.register_forward_pre_hook(
                lambda m, args, block=block: caught.update({block: args[0]})
            )
            for block in blocks
        ]
        features = super().stock_features(pipeline, noisy, size, timestep)
        for hook in hooks:
            hook.remove()
        rows, columns = (side // self.stride for side in size)
        for block in blocks:
            tokens = caught[block][:, -rows * columns :, :WIDTH]
            features[block, 'attention'] = tokens.mT.unflatten(2, (rows, columns))
        return features

    def steps(self, pipeline, noisy, timestep):
        # The sampler's shift is fitted to its number of steps: no part of the training schedule.
        level = FlowMatchingProcess(SCHEDULER).at(timestep, noisy[0, 0].numel())
        pipeline.scheduler = FlowMatchEulerDiscreteScheduler()
        return {'num_inference_steps': 1, 'sigmas': [level.sigma]}

    def stock_latent(self, pipeline, images):
        return pipeline._encode_vae_image(images, generator=None)


class TestFlux2Klein(Flux2, FamilyProof):
    """Qwen3 embeds the prompt; no guidance embedding."""

    def test_single_blocks_are_left_out_where_none_is_needed(self, load):
        assert len(load(blocks=DOUBLE - 1).transformer.single_transformer_blocks) == 0


class TestFlux2Dev(Flux2, FeatureProof):
    """Mistral 3 embeds the prompt; a guidance embedding, told the pipeline's default scale."""

    pipeline_class = Flux2Pipeline
    guidance = 4.0
    call_options: ClassVar = {}

    def encoder(self):
        return {'text_encoder': mistral3(TEXT, layers=31), 'tokenizer': pixtral_processor()}

    def test_guidance_is_heard(self, load):
        told, other = load(), load(condition={'guidance': 1.0})
        latent, noise, *_ = self.noisy(other, self.sizes[1])
        features = [dit.features(latent, 300, noise)[2, 'query'] for dit in (told, other)]
        assert not torch.equal(*features)


def test_guidance_is_an_option_of_dev_alone():
    dev, klein = (
        Flux2Family(published_config('black-forest-labs/FLUX.2-dev')),
        Flux2Family(published_config('black-forest-labs/FLUX.2-klein-4B')),
    )
    assert dev.parse_condition({'guidance': 2.5}) == ('', {'guidance': 2.5})
    with pytest.raises(ValueError, match=r'unknown keys.*guidance'):
        klein.parse_condition({'guidance': 2.5})


@pytest.mark.parametrize('num_blocks', [1, 8, 9, 56])
def test_build_overrides(num_blocks):
    built = Flux2Family(published_config('black-forest-labs/FLUX.2-dev')).build_overrides(
        num_blocks
    )
    assert built == {
        'num_layers': min(num_blocks, 8),
        'num_single_layers': max(num_blocks - 8, 0),
    }


@pytest.mark.parametrize('name', PUBLISHED)
def test_published_sizes(name):
    check_published(name, *PUBLISHED[name])
