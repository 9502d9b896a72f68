# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
from typing import ClassVar

import pytest
import torch
from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)
from diffusers.models.transformers.transformer_qwenimage import apply_rotary_emb_qwen
from harness import FamilyProof, item, recorded
from published import check_published
from tiny_text import qwen2_tokenizer
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from mmaselect.diffusion import FrozenDiT
from mmaselect.diffusion.families.qwen_image import QwenImageFamily

#: Name, config as on the model page, width, blocks, parameters in billions as published.
PUBLISHED = [
    (
        'Qwen/Qwen-Image',
        QwenImageTransformer2DModel,
        {
            'patch_size': 2,
            'in_channels': 64,
            'out_channels': 16,
            'num_layers': 60,
            'attention_head_dim': 128,
            'num_attention_heads': 24,
            'joint_attention_dim': 3584,
            'guidance_embeds': False,
            'axes_dims_rope': [16, 56, 56],
        },
        3072,
        60,
        20,
    ),
]

WIDTH, TEXT = 32, 16


def qwen25_vl(tokenizer, width=TEXT):
    torch.manual_seed(1)
    rope = {'type': 'default', 'rope_type': 'default', 'mrope_section': [1, 1, 2]}
    config = Qwen2_5_VLConfig(
        text_config={
            'vocab_size': len(tokenizer),
            'hidden_size': width,
            'intermediate_size': 2 * width,
            'num_hidden_layers': 2,
            'num_attention_heads': 2,
            'num_key_value_heads': 2,
            'rope_scaling': rope,
        },
        vision_config={
            'depth': 1,
            'hidden_size': width,
            'intermediate_size': width,
            'num_heads': 2,
            'out_hidden_size': width,
        },
    )
    return Qwen2_5_VLForConditionalGeneration(config).eval()


class TestQwenImage(FamilyProof):
    num_blocks = 4
    stride = 16
    sizes = ((128, 128), (64, 96), (96, 32))
    transformer_options: ClassVar = {}

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
            vae=AutoencoderKLQwenImage(
                base_dim=8,
                z_dim=4,
                dim_mult=[1, 1, 1, 1],
                num_res_blocks=1,
                temperal_downsample=[False, True, True],
                latents_mean=[0.1, -0.2, 0.3, 0.4],
                latents_std=[0.9, 1.1, 0.8, 1.3],
            ),
            scheduler=FlowMatchEulerDiscreteScheduler(
                use_dynamic_shifting=True,
                base_shift=0.5,
                max_shift=0.9,
                max_image_seq_len=8192,
            ),
            text_encoder=qwen25_vl(tokenizer),
            tokenizer=tokenizer,
        ).save_pretrained(folder)

    def stock_call(self, pipeline, noisy, model_time):
        batch, channels, height, width = noisy.shape
        embeds, mask = pipeline.encode_prompt([''] * batch, device='cpu')
        pipeline.transformer(
            hidden_states=pipeline._pack_latents(noisy, batch, channels, height, width),
            timestep=model_time / 1000,
            encoder_hidden_states=embeds,
            encoder_hidden_states_mask=mask,
            img_shapes=[[(1, height // 2, width // 2)]] * batch,
        )

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

    def stock_post(self, pipeline, noisy, model_time, block):
        path = f'transformer_blocks.{block}.attn'
        names = ('norm_q', 'norm_k')
        with recorded(pipeline.transformer, [f'{path}.{name}' for name in names]) as outputs:
            self.stock_call(pipeline, noisy, model_time)
        rows, columns = noisy.shape[-2] // 2, noisy.shape[-1] // 2
        rotary, _ = pipeline.transformer.pos_embed([(1, rows, columns)], max_txt_seq_len=1)
        query, key = (
            apply_rotary_emb_qwen(outputs[f'{path}.{name}'], rotary, use_real=False).flatten(2)
            for name in names
        )
        return {'query_post': query, 'key_post': key}

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
    latent, noise, noisy, time = proof.noisy(dit, (64, 96))
    expected = proof.stock_features(pipeline, noisy, time, (64, 96))
    for key, value in dit.features(latent, proof.timestep, noise).items():
        assert torch.equal(value, expected[key]), key


def config(**changes):
    return {**PUBLISHED[0][2], **changes}


def test_too_large_an_image_is_refused():
    family = QwenImageFamily(config())
    family.check_grid((6144, 1), 16)
    with pytest.raises(ValueError, match=r'6144x6144 tokens.*1x6145.*98304 pixels'):
        family.check_grid((1, 6145), 16)


@pytest.mark.parametrize('option', ['use_layer3d_rope', 'use_additional_t_cond'])
def test_layered_is_refused(option):
    with pytest.raises(ValueError, match=r'Layered .*not supported'):
        QwenImageFamily(config(**{option: True}))


@pytest.mark.parametrize('model', PUBLISHED, ids=lambda model: model[0])
def test_published_sizes(model):
    check_published(model)
