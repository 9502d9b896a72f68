# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
import pytest
import torch
from diffusers import (
    Cosmos2TextToImagePipeline,
    CosmosTransformer3DModel,
    FlowMatchEulerDiscreteScheduler,
)
from harness import FamilyProof, FeatureProof, item
from published import check_published, published_config
from tiny_text import t5_encoder, t5_tokenizer
from tiny_vae import wan_latent, wan_vae

from mmaselect.diffusion.families.cosmos import CosmosFamily

#: Name to width, blocks, and parameters in billions as published.
PUBLISHED = {
    'nvidia/Cosmos-Predict2-2B-Text2Image': (2048, 28, 2),
    'nvidia/Cosmos-Predict2-14B-Text2Image': (5120, 36, 14),
}

TEXT = 32


class SafePrompts:
    """In the place of the guardrail, without which the pipeline makes no image."""

    def to(self, device):
        return self

    def check_text_safety(self, prompt):
        return True


class Cosmos:
    num_blocks = 4
    stride = 16
    sizes = ((128, 128), (64, 96), (96, 32))
    # Where c_in = 1 - sigma, which the pipeline multiplies by, is a power of two.
    timesteps = (875, 750)
    timestep = 500

    def build(self, folder):
        torch.manual_seed(0)
        Cosmos2TextToImagePipeline(
            transformer=CosmosTransformer3DModel(
                in_channels=4,
                out_channels=4,
                num_attention_heads=2,
                attention_head_dim=16,
                num_layers=self.num_blocks,
                mlp_ratio=2,
                text_embed_dim=TEXT,
                adaln_lora_dim=4,
                max_size=(4, 32, 32),
                rope_scale=(1.0, 4.0, 4.0),
                extra_pos_embed_type=None,
            ),
            scheduler=FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True),
            vae=wan_vae(),
            text_encoder=t5_encoder(TEXT),
            tokenizer=t5_tokenizer(max_length=512),
            safety_checker=SafePrompts(),
        ).save_pretrained(folder)

    def stock_pipeline(self, folder, **options):
        return super().stock_pipeline(folder, safety_checker=SafePrompts(), **options)

    def steps(self, pipeline, noisy, timestep):
        # The second and last step of the sampler starts from the least noise that it goes to.
        noise = timestep / (1000 - timestep)
        pipeline.scheduler.register_to_config(sigma_min=noise)
        return self.steps_until(pipeline, noisy, 1, of=2)

    def stock_latents(self, pipeline, noisy):
        least = pipeline.scheduler.config.sigma_min
        return noisy.float()[:, :, None] * (1 + least)

    def stock_level(self, pipeline, timestep):
        noise = pipeline.scheduler.sigmas[1]
        sigma = noise / (noise + 1)
        return (1 - sigma).item(), sigma.item()

    def stock_latent(self, pipeline, images):
        return wan_latent(pipeline, images)

    def points(self, block):
        path, whole = f'transformer_blocks.{block}', item(slice(None))
        return {
            'query': (f'{path}.attn1.to_q', whole),
            'key': (f'{path}.attn1.to_k', whole),
            'value': (f'{path}.attn1.to_v', whole),
            'attention': (f'{path}.attn1', whole),
            'output': (path, whole),
        }

    def post_points(self, block):
        return f'transformer_blocks.{block}.attn1', item(slice(None))


class TestCosmos(Cosmos, FamilyProof):
    """The empty prompt."""


class TestCosmosWithAPrompt(Cosmos, FeatureProof):
    condition = prompt = 'a red bird'


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({'in_channels': 17}, r'Video2World.*not supported: use'),
        ({'extra_pos_embed_type': 'learnable'}, r'Cosmos 1\.0.*videos.*not supported: use'),
    ],
)
def test_other_kinds_are_refused(changes, words):
    with pytest.raises(ValueError, match=rf'{words} .nvidia/Cosmos-Predict2-2B-Text2Image'):
        CosmosFamily(
            {
                **published_config('nvidia/Cosmos-Predict2-2B-Text2Image'),
                'in_channels': 16,
                'out_channels': 16,
                **changes,
            }
        )


def test_too_large_an_image_is_refused():
    family = CosmosFamily(
        {
            **published_config('nvidia/Cosmos-Predict2-2B-Text2Image'),
            'in_channels': 16,
            'out_channels': 16,
            'max_size': (128, 240, 240),
            'patch_size': (1, 2, 2),
        }
    )
    family.check_grid((128, 1), 16)
    with pytest.raises(ValueError, match=r'128x128 tokens.*1x129.*2048 pixels'):
        family.check_grid((1, 129), 16)


@pytest.mark.parametrize('name', PUBLISHED)
def test_published_sizes(name):
    check_published(name, *PUBLISHED[name])
