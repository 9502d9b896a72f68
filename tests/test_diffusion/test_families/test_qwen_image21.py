# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
from typing import ClassVar

import pytest
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    QwenImage21Pipeline,
    QwenImage21Transformer2DModel,
)
from harness import FamilyProof, FeatureProof, last_tokens
from published import check_published, published_config
from tiny_chat import qwen3_vl_chat, qwen3_vl_processor
from tiny_vae import qwen_image21_vae

from mmaselect.diffusion.families.qwen_image21 import QwenImage21Family, image_tokens

#: Name to width, blocks, and parameters in billions as published.
PUBLISHED = {
    'Qwen/Qwen-Image-2.1': (4096, 32, 7),
}

TEXT = 16


class QwenImage21:
    num_blocks = 4
    stride = 16
    sizes = ((128, 128), (64, 96), (96, 32))
    # The text's, and then the image's.
    products = 2
    call_options: ClassVar = {}

    def build(self, folder):
        processor = qwen3_vl_processor()
        QwenImage21Pipeline(
            transformer=QwenImage21Transformer2DModel(
                in_channels=4,
                out_channels=4,
                num_layers=self.num_blocks,
                attention_head_dim=16,
                num_attention_heads=2,
                context_in_dim=TEXT,
                mlp_ratio=2,
                axes_dims_rope=(4, 6, 6),
            ),
            vae=qwen_image21_vae(),
            scheduler=FlowMatchEulerDiscreteScheduler(
                use_dynamic_shifting=True,
                base_shift=0.5,
                max_shift=0.9,
                max_image_seq_len=8192,
            ),
            text_encoder=qwen3_vl_chat(processor, TEXT),
            processor=processor,
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
        # As the pipeline has images without transparency.
        opaque = torch.cat([images, torch.ones(len(images), 1, *images.shape[2:])], dim=1)
        return pipeline._encode_vae_image(opaque[:, :, None], None)[:, :, 0]


class TestQwenImage21(QwenImage21, FamilyProof):
    def test_an_odd_number_of_tokens_is_made_even_and_cropped_again(self, load):
        """By repeating the last row and column of the noisy latent."""
        dit = load(blocks=2, features=load().family.features)
        dit.process.dynamic = False  # or else the larger image is noisier
        latent, noise, *_ = self.noisy(dit, (80, 48))
        assert latent.shape[2:] == (5, 3)
        even, more = (
            torch.nn.functional.pad(tensor, (0, 1, 0, 1), mode='replicate')
            for tensor in (latent, noise)
        )
        expected = dit.features(even, self.timestep, more)
        for key, value in dit.features(latent, self.timestep, noise).items():
            assert value.shape[2:] == (5, 3)
            assert torch.equal(value, expected[key][:, :, :5, :3]), key


class TestQwenImage21WithAPrompt(QwenImage21, FeatureProof):
    condition = prompt = 'a red bird'


def test_image_tokens_of_an_odd_grid():
    tokens = torch.arange(3 + 4 * 6).view(1, -1, 1)
    picked = image_tokens(tokens, (3, 5)).flatten().tolist()
    assert picked == [3 + 6 * row + column for row in range(3) for column in range(5)]


def test_too_large_an_image_is_refused():
    family = QwenImage21Family(published_config('Qwen/Qwen-Image-2.1'))
    family.check_grid((2048, 1), 16)
    with pytest.raises(ValueError, match=r'2048x2048 tokens.*1x2049.*32768 pixels'):
        family.check_grid((1, 2049), 16)


@pytest.mark.parametrize('name', PUBLISHED)
def test_published_sizes(name):
    check_published(name, *PUBLISHED[name])
