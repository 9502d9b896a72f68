# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
from typing import ClassVar

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, Krea2Pipeline, Krea2Transformer2DModel
from harness import FamilyProof, FeatureProof, last_tokens
from published import check_published
from tiny_chat import qwen3_vl
from tiny_text import qwen2_tokenizer
from tiny_vae import qwen_image_vae

#: Name to width, blocks, and parameters in billions as published.
PUBLISHED = {
    'krea/Krea-2-Raw': (6144, 28, 12.9),
    'krea/Krea-2-Turbo': (6144, 28, 12.9),
}

TEXT, HEAD, HEADS = 16, 8, 4


class Krea2:
    num_blocks = 4
    stride = 16
    sizes = ((128, 128), (64, 96), (96, 32))
    call_options: ClassVar = {'guidance_scale': 0.0}
    distilled = False

    def build(self, folder):
        tokenizer = qwen2_tokenizer(max_length=1024)
        transformer = Krea2Transformer2DModel(
            in_channels=16,
            num_layers=self.num_blocks,
            attention_head_dim=HEAD,
            num_attention_heads=HEADS,
            num_key_value_heads=HEADS // 2,
            intermediate_size=48,
            timestep_embed_dim=16,
            text_hidden_dim=TEXT,
            num_text_layers=2,
            text_num_attention_heads=2,
            text_num_key_value_heads=1,
            text_intermediate_size=24,
            num_layerwise_text_blocks=1,
            num_refiner_text_blocks=1,
            axes_dims_rope=(4, 2, 2),
        )
        # Zero as constructed, in which case no block would hear the time differently.
        for block in transformer.transformer_blocks:
            torch.nn.init.normal_(block.scale_shift_table, std=0.5)
        Krea2Pipeline(
            transformer=transformer,
            scheduler=FlowMatchEulerDiscreteScheduler(
                use_dynamic_shifting=True, max_image_seq_len=6400
            ),
            vae=qwen_image_vae(),
            text_encoder=qwen3_vl(tokenizer, TEXT, layers=2),
            tokenizer=tokenizer,
            text_encoder_select_layers=(1, 2),
            is_distilled=self.distilled,
        ).save_pretrained(folder)

    def points(self, block):
        path = f'transformer_blocks.{block}'
        return {
            'query': (f'{path}.attn.to_q', last_tokens),
            'key': (f'{path}.attn.to_k', last_tokens),
            'value': (f'{path}.attn.to_v', last_tokens),
            'attention': (f'{path}.attn', last_tokens),
            'output': (path, last_tokens),
        }

    def post_points(self, block):
        return f'transformer_blocks.{block}.attn', last_tokens

    def stock_latents(self, pipeline, noisy):
        return pipeline._pack_latents(noisy, *noisy.shape)

    def stock_latent(self, pipeline, images):
        latent = pipeline.vae.encode(images[:, :, None]).latent_dist.mode()[:, :, 0]
        mean = torch.tensor(pipeline.vae.config.latents_mean).view(1, -1, 1, 1)
        std = 1.0 / torch.tensor(pipeline.vae.config.latents_std).view(1, -1, 1, 1)
        return (latent - mean) * std


class TestKrea2(Krea2, FamilyProof):
    """The base model, shifted by the size of the image."""

    def test_keys_and_values_have_fewer_channels(self, load):
        dit = load(blocks=0, features=load().family.features)
        channels = {feature: dit.channels((0, feature)) for feature in dit.family.features}
        narrow = {feature for feature, count in channels.items() if count == HEAD * HEADS // 2}
        assert narrow == {'key', 'value'}


class TestKrea2Turbo(Krea2, FeatureProof):
    """Distilled: one shift for all sizes; a prompt, and not the empty one."""

    distilled = True
    condition = prompt = 'a red bird'


@pytest.mark.parametrize('name', PUBLISHED)
def test_published_sizes(name):
    check_published(name, *PUBLISHED[name])
