# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, OmniGenPipeline, OmniGenTransformer2DModel
from harness import FamilyProof, FeatureProof
from published import check_published
from tiny_text import t5_tokenizer
from tiny_vae import kl_vae

from mmaselect.diffusion.families.omnigen import OmniGenFamily

#: Name to width, blocks, and parameters in billions as published.
PUBLISHED = {
    'Shitao/OmniGen-v1-diffusers': (3072, 32, 3.8),
}


def prompted(output, n):
    """Image tokens of the first half of a batch: the other has the negative prompt."""
    return output[: len(output) // 2, -n:]


class OmniGen(FeatureProof):
    num_blocks = 4
    stride = 16
    sizes = ((128, 128), (64, 96), (96, 32))
    stacks = ('layers',)
    # Of a generation with eight steps.
    timesteps = (875, 750)
    timestep = 750

    def build(self, folder):
        tokenizer = t5_tokenizer(max_length=512)
        OmniGenPipeline(
            transformer=OmniGenTransformer2DModel(
                in_channels=4,
                hidden_size=32,
                num_attention_heads=2,
                num_key_value_heads=2,
                intermediate_size=48,
                num_layers=self.num_blocks,
                pad_token_id=0,
                vocab_size=len(tokenizer),
                rope_scaling={
                    'short_factor': [1.0 + i / 8 for i in range(8)],
                    'long_factor': [2.0] * 8,
                },
                pos_embed_max_size=12,
                time_step_dim=16,
            ),
            scheduler=FlowMatchEulerDiscreteScheduler(invert_sigmas=True, num_train_timesteps=1),
            vae=kl_vae(4, scale=0.13025, shift=0.0, levels=4),
            tokenizer=tokenizer,
        ).save_pretrained(folder)

    def steps(self, pipeline, noisy, timestep):
        return self.steps_until(pipeline, noisy, 8 - timestep // 125, of=8)

    def noisy(self, dit, size, batch=2, timestep=None):
        # As many as the pipeline calls the transformer with, and of the same strides: what else is
        # computed is rounded otherwise.
        latent, noise, noisy, level = super().noisy(dit, size, batch, timestep)
        return torch.cat([latent] * 2), torch.cat([noise] * 2), noisy, level

    def stock_features(self, *args):
        features = super().stock_features(*args)
        return {key: value.repeat(2, 1, 1, 1) for key, value in features.items()}

    def stock_level(self, pipeline, timestep):
        # Its share of the image, as its time.
        alpha = pipeline.scheduler.sigmas[8 - timestep // 125]
        return alpha.item(), (1 - alpha).item()

    def points(self, block):
        path = f'layers.{block}'
        return {
            'query': (f'{path}.self_attn.to_q', prompted),
            'key': (f'{path}.self_attn.to_k', prompted),
            'value': (f'{path}.self_attn.to_v', prompted),
            'attention': (f'{path}.self_attn', prompted),
            'output': (path, prompted),
        }

    def post_points(self, block):
        return f'layers.{block}.self_attn', prompted


class TestOmniGen(OmniGen, FamilyProof):
    """The empty prompt, which is padded to the length of the negative one."""


class TestOmniGenWithAPrompt(OmniGen):
    """One that is longer than the negative prompt, so without padding."""

    condition = prompt = 'a red bird ' * 40


def test_too_large_an_image_is_refused():
    family = OmniGenFamily({'pos_embed_max_size': 192})
    family.check_grid((192, 1), 16)
    with pytest.raises(ValueError, match=r'192x192 tokens.*1x193.*3072 pixels'):
        family.check_grid((1, 193), 16)


@pytest.mark.parametrize('name', PUBLISHED)
def test_published_sizes(name):
    check_published(name, *PUBLISHED[name])
