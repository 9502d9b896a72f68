# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
import pytest
import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    CogView3PlusPipeline,
    CogView3PlusTransformer2DModel,
)
from harness import FamilyProof, FeatureProof, item, last_tokens
from published import check_published
from tiny_text import t5_encoder, t5_tokenizer
from tiny_vae import kl_vae

from mmaselect.diffusion import FrozenDiT
from mmaselect.diffusion.process import CogVideoXProcess

#: Name to width, blocks, and parameters in billions as published.
PUBLISHED = {
    'THUDM/CogView3-Plus-3B': (2560, 30, 2.85),  # '3B'
}

#: Of THUDM/CogView3-Plus-3B.
SCHEDULER = {
    'beta_schedule': 'scaled_linear',
    'prediction_type': 'v_prediction',
    'rescale_betas_zero_snr': True,
    'snr_shift_scale': 4.0,
    'timestep_spacing': 'trailing',
}

TEXT = 32


class CogView3Plus:
    num_blocks = 4
    stride = 16
    sizes = ((128, 128), (64, 96), (96, 32))

    def build(self, folder):
        CogView3PlusPipeline(
            tokenizer=t5_tokenizer(max_length=224),
            text_encoder=t5_encoder(TEXT),
            vae=kl_vae(4, scale=1.0, shift=0.0, levels=4),
            transformer=CogView3PlusTransformer2DModel(
                in_channels=4,
                out_channels=4,
                num_layers=self.num_blocks,
                attention_head_dim=8,
                num_attention_heads=2,
                text_embed_dim=TEXT,
                time_embed_dim=8,
                condition_dim=8,
                pos_embed_max_size=8,
                sample_size=8,
            ),
            scheduler=CogVideoXDDIMScheduler(**SCHEDULER),
        ).save_pretrained(folder)

    def steps(self, pipeline, noisy, timestep):
        # One step of this spacing is at 0 plus the offset.
        config = {**SCHEDULER, 'timestep_spacing': 'leading', 'steps_offset': timestep}
        pipeline.scheduler = CogVideoXDDIMScheduler(**config)
        return {'num_inference_steps': 1}

    def stock_level(self, pipeline, timestep):
        # The scheduler keeps its table in float64, and rounds it to noise a latent.
        signal = pipeline.scheduler.alphas_cumprod[timestep].float()
        return (signal**0.5).item(), ((1 - signal) ** 0.5).item()

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


class TestCogView3Plus(CogView3Plus, FamilyProof):
    def test_its_process_is_used(self, load):
        assert isinstance(load().process, CogVideoXProcess)

    def test_too_large_an_image_is_refused(self, load):
        dit = load()
        dit.encode(torch.zeros(1, 3, 128, 112))
        with pytest.raises(ValueError, match=r'8x8 tokens.*128x128; got 1x9 .*16x144'):
            dit.encode(torch.zeros(1, 3, 16, 144))


class TestCogView3PlusWithAPrompt(CogView3Plus, FeatureProof):
    condition = prompt = 'a red bird on a branch'


def test_the_size_is_heard(saved):
    proof = TestCogView3Plus()
    folder = saved(TestCogView3Plus)
    dit = FrozenDiT.from_pretrained(folder)
    latent, noise, *_ = proof.noisy(dit, (64, 64))
    (told,) = dit.features(latent, 300, noise).values()
    dit.condition_pixels_per_latent.mul_(2)
    (doubled,) = dit.features(latent, 300, noise).values()
    assert not torch.equal(told, doubled)


@pytest.mark.parametrize('name', PUBLISHED)
def test_published_sizes(name):
    check_published(name, *PUBLISHED[name])
