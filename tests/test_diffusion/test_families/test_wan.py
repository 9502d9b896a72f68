# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
import json
from typing import ClassVar

import pytest
from diffusers import UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from harness import FamilyProof, FeatureProof, item
from published import check_published
from rooted_proof import RootedProof
from tiny_language import umt5
from tiny_text import t5_tokenizer
from tiny_vae import wan_latent, wan_vae

from mmaselect.diffusion import FrozenDiT
from mmaselect.diffusion.families.wan import WanFamily

#: Name to width, blocks, and parameters in billions as published.
PUBLISHED = {
    'Wan-AI/Wan2.1-T2V-1.3B-Diffusers': (1536, 30, 1.42),  # 5.68 GB at 32 bit
    'Wan-AI/Wan2.1-T2V-14B-Diffusers': (5120, 40, 14),
    'Wan-AI/Wan2.2-TI2V-5B-Diffusers': (3072, 30, 5),
}

TEXT = 8


class Wan:
    num_blocks = 4
    stride = 16
    sizes = ((128, 128), (64, 96), (96, 32))
    stacks = ('blocks',)
    images_per_prompt = 'num_videos_per_prompt'
    call_options: ClassVar = {'guidance_scale': 1.0, 'num_frames': 1}
    # Of a generation with three steps, which are 1000, 667 and 334.
    timesteps = (667, 334)
    timestep = 334
    pipeline_options: ClassVar = {}
    vae_options: ClassVar = {}

    def build(self, folder):
        tokenizer = t5_tokenizer(max_length=512)
        WanPipeline(
            transformer=WanTransformer3DModel(
                num_attention_heads=2,
                attention_head_dim=12,
                in_channels=4,
                out_channels=4,
                text_dim=TEXT,
                freq_dim=16,
                ffn_dim=32,
                num_layers=self.num_blocks,
                rope_max_seq_len=32,
            ),
            scheduler=UniPCMultistepScheduler(
                use_flow_sigmas=True, flow_shift=3.0, prediction_type='flow_prediction'
            ),
            vae=wan_vae(**self.vae_options),
            text_encoder=umt5(tokenizer, TEXT),
            tokenizer=tokenizer,
            **self.pipeline_options,
        ).save_pretrained(folder)

    def step(self, timestep):
        return 3 - timestep // 333

    def steps(self, pipeline, noisy, timestep):
        return self.steps_until(pipeline, noisy, self.step(timestep), of=3)

    def stock_level(self, pipeline, timestep):
        sigma = pipeline.scheduler.sigmas[self.step(timestep)]
        return (1 - sigma).item(), sigma.item()

    def stock_latents(self, pipeline, noisy):
        return noisy[:, :, None]

    def stock_latent(self, pipeline, images):
        return wan_latent(pipeline, images)

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


class TestWan21(Wan, RootedProof):
    """The empty prompt."""


class TestWan22(Wan, FeatureProof):
    """A time for every token, a VAE with a stride of 16, and a prompt, cleaned of blanks."""

    stride = 32
    sizes = ((256, 256), (128, 192), (192, 64))
    condition = prompt = 'a  red bird &amp; co '
    pipeline_options: ClassVar = {'expand_timesteps': True}
    vae_options: ClassVar = {
        'patch_size': 2,
        'in_channels': 12,
        'out_channels': 12,
        'is_residual': True,
        'scale_factor_spatial': 16,
    }

    test_latent_equals_the_vae = FamilyProof.test_latent_equals_the_vae


@pytest.mark.parametrize(
    'changes', [{'in_channels': 36}, {'image_dim': 1280}, {'added_kv_proj_dim': 5120}]
)
def test_image_to_video_is_refused(changes):
    config = {'in_channels': 16, 'out_channels': 16, **changes}
    with pytest.raises(ValueError, match=r'I2V.*not supported: use .Wan-AI/Wan2\.1-T2V-1\.3B'):
        WanFamily(config)


def test_two_transformers_are_refused(tmp_path):
    TestWan21().build(tmp_path)
    index = json.loads((tmp_path / 'model_index.json').read_text())
    index['boundary_ratio'] = 0.875
    (tmp_path / 'model_index.json').write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r'two transformers.*boundary_ratio=0\.875'):
        FrozenDiT.from_pretrained(tmp_path)


def test_too_large_an_image_is_refused():
    family = WanFamily({'in_channels': 16, 'out_channels': 16, 'rope_max_seq_len': 1024})
    family.check_grid((1024, 1), 16)
    with pytest.raises(ValueError, match=r'1024x1024 tokens.*1x1025.*16384 pixels'):
        family.check_grid((1, 1025), 16)


@pytest.mark.parametrize('name', PUBLISHED)
def test_published_sizes(name):
    check_published(name, *PUBLISHED[name])
