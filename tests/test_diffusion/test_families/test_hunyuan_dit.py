# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
from typing import ClassVar

import pytest
import torch
from diffusers import DDPMScheduler, HunyuanDiT2DModel, HunyuanDiTPipeline
from harness import FeatureProof, item
from published import check_published
from rooted_proof import RootedProof
from tiny_language import bert, bert_tokenizer
from tiny_text import t5_encoder, t5_tokenizer
from tiny_vae import kl_vae

from mmaselect.diffusion import FrozenDiT

#: Name to width, blocks, and parameters in billions as published.
PUBLISHED = {
    'Tencent-Hunyuan/HunyuanDiT-v1.1-Diffusers': (1408, 40, 1.5),
    'Tencent-Hunyuan/HunyuanDiT-v1.2-Diffusers': (1408, 40, 1.5),
}

TEXT, TEXT_T5, HEADS, HEAD = 8, 32, 2, 8


class HunyuanDiT:
    num_blocks = 6
    stride = 16
    sizes = ((128, 128), (64, 96), (96, 32))
    # The first of those with a skip is the fifth.
    chosen_blocks = (0, 3, 4, 5)
    transformer_options: ClassVar = {}
    call_options: ClassVar = {'guidance_scale': 1.0, 'use_resolution_binning': False}

    def build(self, folder):
        tokenizer = bert_tokenizer()
        HunyuanDiTPipeline(
            vae=kl_vae(4, scale=0.13025, shift=0.0, levels=4),
            text_encoder=bert(tokenizer, TEXT),
            tokenizer=tokenizer,
            text_encoder_2=t5_encoder(TEXT_T5),
            tokenizer_2=t5_tokenizer(max_length=256),
            transformer=HunyuanDiT2DModel(
                sample_size=8,
                patch_size=2,
                in_channels=4,
                num_layers=self.num_blocks,
                num_attention_heads=HEADS,
                attention_head_dim=HEAD,
                hidden_size=HEADS * HEAD,
                activation_fn='gelu-approximate',
                cross_attention_dim=TEXT,
                cross_attention_dim_t5=TEXT_T5,
                pooled_projection_dim=16,
                **self.transformer_options,
            ),
            scheduler=DDPMScheduler(
                beta_start=0.00085,
                beta_end=0.03,
                beta_schedule='scaled_linear',
                prediction_type='v_prediction',
                steps_offset=1,
                clip_sample=False,
            ),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        ).save_pretrained(folder)

    def points(self, block):
        path, whole = f'blocks.{block}', item(slice(None))
        return {
            'query': (f'{path}.attn1.to_q', whole),
            'key': (f'{path}.attn1.to_k', whole),
            'value': (f'{path}.attn1.to_v', whole),
            'attention': (f'{path}.attn1', whole),
            'output': (path, whole),
        }

    def post_points(self, block):
        return f'blocks.{block}.attn1', item(slice(None))

    def steps(self, pipeline, noisy, timestep):
        # One step of this spacing is at 0 plus the offset.
        config = {**pipeline.scheduler.config, 'timestep_spacing': 'leading'}
        pipeline.scheduler = DDPMScheduler.from_config({**config, 'steps_offset': timestep})
        return {'num_inference_steps': 1}


class TestHunyuanDiT(HunyuanDiT, RootedProof):
    """Up to 1.1: the model is told the size of the image and a style."""

    stacks = ('blocks',)

    def test_truncation_leaves_the_skips_alone(self, load, pipeline):
        """Blocks with a skip are those beyond the middle of the *published* depth."""
        stock = [block.skip_linear is not None for block in pipeline.transformer.blocks]
        assert stock == [False] * 4 + [True] * 2
        for depth in range(1, self.num_blocks + 1):
            transformer = load(blocks=depth - 1).transformer
            assert [b.skip_linear is not None for b in transformer.blocks] == stock[:depth]


class TestHunyuanDiT12(HunyuanDiT, FeatureProof):
    """From 1.2 on it is not told; a prompt, and not the empty one."""

    transformer_options: ClassVar = {'use_style_cond_and_image_meta_size': False}
    condition = prompt = 'a red bird'


@pytest.mark.parametrize('told', [True, False])
def test_the_size_is_heard_up_to_version_1_1(tmp_path, told):
    proof = TestHunyuanDiT()
    proof.transformer_options = {'use_style_cond_and_image_meta_size': told}
    proof.build(tmp_path)
    dit = FrozenDiT.from_pretrained(tmp_path)
    latent, noise, *_ = proof.noisy(dit, (64, 64))
    (before,) = dit.features(latent, 300, noise).values()
    dit.condition_pixels_per_latent.mul_(2)
    (after,) = dit.features(latent, 300, noise).values()
    assert torch.equal(before, after) is not told


@pytest.mark.parametrize('name', PUBLISHED)
def test_published_sizes(name):
    check_published(name, *PUBLISHED[name])
