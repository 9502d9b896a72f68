# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
from typing import ClassVar

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, LuminaNextDiT2DModel, LuminaPipeline
from harness import FeatureProof, item
from published import check_published, published_config
from rooted_proof import RootedProof
from tiny_language import gemma2
from tiny_text import t5_tokenizer
from tiny_vae import kl_vae

from mmaselect.diffusion import FrozenDiT
from mmaselect.diffusion.families.lumina_next import LuminaNextFamily

#: Name to width, blocks, and parameters in billions as published.
PUBLISHED = {
    'Alpha-VLLM/Lumina-Next-SFT-diffusers': (2304, 24, 1.755),  # 3.51 GB at 16 bit; '2B'
}

TEXT, WIDTH, HEADS = 8, 32, 4


class LuminaNext:
    num_blocks = 4
    stride = 16
    sizes = ((128, 128), (64, 96), (96, 32))
    stacks = ('layers',)
    call_options: ClassVar = {'guidance_scale': 1.0}

    def build(self, folder):
        # Of an empty prompt one token is left, as with the published one, which begins with <bos>.
        tokenizer = t5_tokenizer(max_length=256)
        transformer = LuminaNextDiT2DModel(
            sample_size=32,
            in_channels=4,
            hidden_size=WIDTH,
            num_layers=self.num_blocks,
            num_attention_heads=HEADS,
            num_kv_heads=HEADS // 2,
            multiple_of=8,
            cross_attention_dim=TEXT,
        )
        # Not set as constructed, or zero, in which case the text would not be heard.
        torch.nn.init.normal_(transformer.pad_token)
        for block in transformer.layers:
            torch.nn.init.normal_(block.gate)
        LuminaPipeline(
            transformer=transformer,
            scheduler=FlowMatchEulerDiscreteScheduler(),
            vae=kl_vae(4, scale=0.13025, shift=0.0, levels=4),
            text_encoder=gemma2(tokenizer, TEXT),
            tokenizer=tokenizer,
        ).save_pretrained(folder)

    def points(self, block):
        path, whole = f'layers.{block}', item(slice(None))
        return {
            'query': (f'{path}.attn1.to_q', whole),
            'key': (f'{path}.attn1.to_k', whole),
            'value': (f'{path}.attn1.to_v', whole),
            'attention': (f'{path}.attn1', lambda output, n: output.flatten(2)),
            'output': (path, whole),
        }

    def post_points(self, block):
        return f'layers.{block}.attn1', item(slice(None))


class TestLuminaNext(LuminaNext, RootedProof):
    def test_keys_and_values_have_fewer_channels(self, load):
        dit = load(blocks=0, features=load().family.features)
        channels = {feature: dit.channels((0, feature)) for feature in dit.family.features}
        narrow = {feature for feature, count in channels.items() if count == WIDTH // 2}
        assert narrow == {'key', 'value'}


class TestLuminaNextWithAPrompt(LuminaNext, FeatureProof):
    """Cleaned, as the pipeline's call does it."""

    condition = prompt = 'A <b>red</b> bird'


def test_a_clean_image_is_read(saved):
    """Without noise the positions are stretched another way."""
    folder = saved(TestLuminaNext)
    dit = FrozenDiT.from_pretrained(folder, features='query_post')
    latent = torch.randn(1, 4, 4, 6)
    clean, noisy = (dit.features(latent, t, latent)[2, 'query_post'] for t in (0, 1))
    assert not torch.allclose(clean, noisy, atol=1e-2)


def test_too_large_an_image_is_refused():
    family = LuminaNextFamily(published_config('Alpha-VLLM/Lumina-Next-SFT-diffusers'))
    family.check_grid((384, 384), 16)
    with pytest.raises(ValueError, match=r'384x384 tokens.*6144x6144; got 8x385'):
        family.check_grid((8, 385), 16)


@pytest.mark.parametrize('name', PUBLISHED)
def test_published_sizes(name):
    check_published(name, *PUBLISHED[name])
