# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
from typing import ClassVar

import pytest
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)
from harness import FamilyProof, item, last_tokens
from published import check_published, published_config
from tiny_chat import qwen25_vl
from tiny_text import qwen2_tokenizer
from tiny_vae import qwen_image_vae

from mmaselect.diffusion import FrozenDiT
from mmaselect.diffusion.families.qwen_image import QwenImageFamily

#: Name to width, blocks, and parameters in billions as published.
PUBLISHED = {
    'Qwen/Qwen-Image': (3072, 60, 20),
}

TEXT = 16


class TestQwenImage(FamilyProof):
    num_blocks = 4
    stride = 16
    sizes = ((128, 128), (64, 96), (96, 32))
    transformer_options: ClassVar = {}
    call_options: ClassVar = {'true_cfg_scale': 1.0}

    def build(self, folder):
        tokenizer = qwen2_tokenizer(max_length=1100)
        QwenImagePipeline(
            transformer=QwenImageTransformer2DModel(
                patch_size=2,
                in_channels=16,
                out_channels=4,
                num_layers=self.num_blocks,
                attention_head_dim=16,
                num_attention_heads=2,
                joint_attention_dim=TEXT,
                axes_dims_rope=(4, 6, 6),
                **self.transformer_options,
            ),
            vae=qwen_image_vae(),
            scheduler=FlowMatchEulerDiscreteScheduler(
                use_dynamic_shifting=True,
                base_shift=0.5,
                max_shift=0.9,
                max_image_seq_len=8192,
            ),
            text_encoder=qwen25_vl(tokenizer, TEXT),
            tokenizer=tokenizer,
        ).save_pretrained(folder)

    def points(self, block):
        path = f'transformer_blocks.{block}'
        whole = item(slice(None))
        return {
            'query': (f'{path}.attn.to_q', whole),
            'key': (f'{path}.attn.to_k', whole),
            'value': (f'{path}.attn.to_v', whole),
            'attention': (f'{path}.attn', item(0)),
            'output': (path, item(1)),
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


def test_modulation_of_reference_images(tmp_path):
    """Edit-2511 has a second modulation, for their tokens, of which there are none here."""
    proof = TestQwenImage()
    proof.transformer_options = {'zero_cond_t': True}
    proof.build(tmp_path)
    pipeline = proof.stock_pipeline(tmp_path)
    pipeline.transformer.requires_grad_(False)
    assert pipeline.transformer.zero_cond_t
    dit = FrozenDiT.from_pretrained(tmp_path, blocks=[3], features=('query', 'output'))
    latent, noise, noisy, _ = proof.noisy(dit, (64, 96))
    expected = proof.stock_features(pipeline, noisy, (64, 96))
    for key, value in dit.features(latent, proof.timestep, noise).items():
        assert torch.equal(value, expected[key]), key


def config(**changes):
    return {**published_config('Qwen/Qwen-Image'), **changes}


def test_too_large_an_image_is_refused():
    family = QwenImageFamily(config())
    family.check_grid((6144, 1), 16)
    with pytest.raises(ValueError, match=r'6144x6144 tokens.*1x6145.*98304 pixels'):
        family.check_grid((1, 6145), 16)


@pytest.mark.parametrize('option', ['use_layer3d_rope', 'use_additional_t_cond'])
def test_layered_is_refused(option):
    with pytest.raises(ValueError, match=r'Layered .*not supported'):
        QwenImageFamily(config(**{option: True}))


@pytest.mark.parametrize('name', PUBLISHED)
def test_published_sizes(name):
    check_published(name, *PUBLISHED[name])
