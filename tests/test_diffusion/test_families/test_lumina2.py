# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
from typing import ClassVar

import pytest
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
)
from harness import FamilyProof, FeatureProof, last_tokens
from published import check_published, published_config
from tiny_language import gemma2
from tiny_text import gemma_tokenizer
from tiny_vae import kl_vae

from mmaselect.diffusion import FrozenDiT
from mmaselect.diffusion.families.lumina2 import Lumina2Family

#: Name to width, blocks, and parameters in billions as published.
PUBLISHED = {
    'Alpha-VLLM/Lumina-Image-2.0': (2304, 26, 2.6),
}

TEXT, WIDTH, HEADS = 8, 48, 4


class Lumina2:
    num_blocks = 4
    stride = 16
    sizes = ((128, 128), (64, 96), (96, 32))

    def build(self, folder):
        tokenizer = gemma_tokenizer(max_length=256)
        Lumina2Pipeline(
            tokenizer=tokenizer,
            text_encoder=gemma2(tokenizer, TEXT),
            vae=kl_vae(4, scale=0.3611, shift=0.1159, levels=4),
            transformer=Lumina2Transformer2DModel(
                sample_size=8,
                in_channels=4,
                hidden_size=WIDTH,
                num_layers=self.num_blocks,
                num_refiner_layers=2,
                num_attention_heads=HEADS,
                num_kv_heads=HEADS // 2,
                multiple_of=8,
                axes_dim_rope=(4, 4, 4),
                axes_lens=(300, 16, 32),
                cap_feat_dim=TEXT,
            ),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=6.0),
        ).save_pretrained(folder)

    def points(self, block):
        path = f'layers.{block}'
        return {
            'query': (f'{path}.attn.to_q', last_tokens),
            'key': (f'{path}.attn.to_k', last_tokens),
            'value': (f'{path}.attn.to_v', last_tokens),
            'attention': (f'{path}.attn', last_tokens),
            'output': (path, last_tokens),
        }

    def post_points(self, block):
        return f'layers.{block}.attn', last_tokens


class TestLumina2(Lumina2, FamilyProof):
    """The empty prompt, as guidance asks for it: no system prompt precedes it.

    The pipeline calls the transformer a second time for that; the second call is what is recorded.
    """

    stacks = ('layers',)
    prompt = 'a bird'
    call_options: ClassVar = {'guidance_scale': 4.0, 'negative_prompt': ''}

    def test_keys_and_values_have_fewer_channels(self, load):
        dit = load(blocks=0, features=load().family.features)
        channels = {feature: dit.channels((0, feature)) for feature in dit.family.features}
        narrow = {feature for feature, count in channels.items() if count == WIDTH // 2}
        assert narrow == {'key', 'value'}
        assert {*channels.values()} == {WIDTH, WIDTH // 2}


class TestLumina2WithAPrompt(Lumina2, FeatureProof):
    """The system prompt precedes it, so the text is longer than the image."""

    condition = prompt = 'a red bird'


def test_clean_is_one_and_noise_is_zero(saved):
    folder = saved(TestLumina2)
    dit = FrozenDiT.from_pretrained(folder, blocks=0)
    told = []
    handle = dit.transformer.time_caption_embed.register_forward_pre_hook(
        lambda module, args: told.append(args[1][0].item())
    )
    latent = torch.zeros(1, 4, 4, 4)
    with handle:
        for timestep in (0, 500, 999):
            dit.features(latent, timestep, latent)
    # sigma of t = 500 is 6/7 after a shift of 6.
    assert told == pytest.approx([1.0, 1 / 7, 1 - 6 * 0.999 / (1 + 5 * 0.999)], abs=1e-6)


def test_too_large_an_image_is_refused():
    family = Lumina2Family(published_config('Alpha-VLLM/Lumina-Image-2.0'))
    family.check_grid((512, 512), 16)
    with pytest.raises(ValueError, match=r'512x512 tokens.*8192x8192; got 8x513 .*128x8208'):
        family.check_grid((8, 513), 16)


@pytest.mark.parametrize('name', PUBLISHED)
def test_published_sizes(name):
    check_published(name, *PUBLISHED[name])
