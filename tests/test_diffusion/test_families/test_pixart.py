# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
import json
from typing import ClassVar

import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
)
from harness import FeatureProof, WantedStepDone, item
from published import check_published, published_config
from rooted_proof import RootedProof
from tiny_text import t5_encoder, t5_tokenizer
from tiny_vae import kl_vae

from mmaselect.diffusion import FrozenDiT
from mmaselect.diffusion.families import text
from mmaselect.diffusion.families.pixart import PixArtFamily

#: Name to width, blocks, and parameters in billions as published.
PUBLISHED = {
    'PixArt-alpha/PixArt-XL-2-512x512': (1152, 28, 0.6),
    'PixArt-alpha/PixArt-XL-2-1024-MS': (1152, 28, 0.6),
    'PixArt-alpha/PixArt-Sigma-XL-2-1024-MS': (1152, 28, 0.6),
}

TEXT = 32


class PixArt:
    num_blocks = 4
    stride = 16
    sizes = ((128, 128), (64, 96), (96, 32))
    pipeline_type = PixArtSigmaPipeline
    transformer_options: ClassVar = {'use_additional_conditions': False}
    call_options: ClassVar = {'guidance_scale': 1.0, 'use_resolution_binning': False}

    def build(self, folder):
        width = 24
        self.pipeline_type(
            tokenizer=t5_tokenizer(max_length=300),
            text_encoder=t5_encoder(TEXT),
            vae=kl_vae(4, scale=0.13025, shift=0.0, levels=4),
            transformer=PixArtTransformer2DModel(
                num_attention_heads=2,
                attention_head_dim=width // 2,
                num_layers=self.num_blocks,
                in_channels=4,
                out_channels=8,
                cross_attention_dim=width,
                caption_channels=TEXT,
                sample_size=128,
                **self.transformer_options,
            ),
            scheduler=DPMSolverMultistepScheduler(),
        ).save_pretrained(folder)

    def points(self, block):
        path, whole = f'transformer_blocks.{block}', item(slice(None))
        return {
            'query': (f'{path}.attn1.to_q', whole),
            'key': (f'{path}.attn1.to_k', whole),
            'value': (f'{path}.attn1.to_v', whole),
            'attention': (f'{path}.attn1', whole),
            'output': (path, whole),
        }

    def steps(self, pipeline, noisy, timestep):
        return {'num_inference_steps': 1, 'timesteps': [timestep]}


class TestPixArtSigma(PixArt, RootedProof):
    pass


class TestPixArtAlpha1024(PixArt, FeatureProof):
    """Alpha at 1024 pixels is told the size; a prompt, whose markup is cleaned away."""

    pipeline_type = PixArtAlphaPipeline
    transformer_options: ClassVar = {}
    condition = prompt = 'A <b>red</b> bird, https://example.com &amp; @someone'

    def stock_call(self, pipeline, noisy, size, timestep):
        """Ended after the pass: for a run of one step the pipeline expects LCM's scheduler."""

        def end(module, args, output):
            raise WantedStepDone

        with pipeline.transformer.register_forward_hook(end):
            super().stock_call(pipeline, noisy, size, timestep)

    def test_the_size_is_heard(self, load):
        """A wide image and a tall one of the same tokens would otherwise tell less apart."""
        dit = load()
        latent, noise, *_ = self.noisy(dit, (64, 64))
        (told,) = dit.features(latent, 300, noise).values()
        dit.condition_pixels_per_latent.mul_(2)
        (doubled,) = dit.features(latent, 300, noise).values()
        assert not torch.allclose(told, doubled)


def test_each_pipeline_embeds_its_own_way(saved):
    """Alpha reads 120 tokens of a prompt, sigma 300."""
    length = {}
    for proof in (TestPixArtSigma, TestPixArtAlpha1024):
        dit = FrozenDiT.from_pretrained(saved(proof))
        length[proof.pipeline_type] = dit.condition_encoder_hidden_states.shape[1]
    assert length == {PixArtSigmaPipeline: 300, PixArtAlphaPipeline: 120}


@pytest.mark.parametrize('package', ['bs4', 'ftfy'])
def test_without_what_cleans_prompts_none_is_embedded(saved, monkeypatch, package):
    """The pipeline would only log that it leaves the markup in."""
    folder = saved(TestPixArtSigma)
    monkeypatch.setattr(text, f'is_{package}_available', lambda: False)
    with pytest.raises(ImportError, match=r'PixArt cleans its prompts with .*\[text\]'):
        FrozenDiT.from_pretrained(folder, condition='not embedded before')


def test_markup_makes_no_difference(saved):
    folder = saved(TestPixArtSigma)
    plain, marked = (
        FrozenDiT.from_pretrained(folder, condition=prompt).condition_encoder_hidden_states
        for prompt in ('a red bird', 'A <b>red</b> bird')
    )
    assert torch.equal(plain, marked)


def test_config_of_the_published_age(tmp_path):
    """Alpha's repositories name the class that PixArtTransformer2DModel was split from."""
    proof = TestPixArtAlpha1024()
    proof.build(tmp_path)
    new = FrozenDiT.from_pretrained(tmp_path)
    file = tmp_path / 'transformer' / 'config.json'
    legacy = {
        **json.loads(file.read_text()),
        '_class_name': 'Transformer2DModel',
        'double_self_attention': False,
        'num_vector_embeds': None,
        'only_cross_attention': False,
        'use_linear_projection': False,
    }
    del legacy['use_additional_conditions']
    file.write_text(json.dumps(legacy))
    old = FrozenDiT.from_pretrained(tmp_path)
    assert old.family.transformer_class == 'PixArtTransformer2DModel'
    assert old.family.knows_size
    latent, noise, *_ = proof.noisy(old, (32, 64))
    (a,), (b,) = (d.features(latent, 10, noise).values() for d in (old, new))
    assert torch.equal(a, b)


@pytest.mark.parametrize(
    ('options', 'told'),
    [
        ({}, False),
        ({'sample_size': 128}, True),
        (published_config('PixArt-alpha/PixArt-Sigma-XL-2-1024-MS'), False),
    ],
    ids=['alpha-512', 'alpha-1024', 'sigma'],
)
def test_which_models_are_told_the_size(options, told):
    family = PixArtFamily({**published_config('PixArt-alpha/PixArt-XL-2-512x512'), **options})
    assert family.knows_size is told
    assert (
        PixArtTransformer2DModel.from_config(
            {**published_config('PixArt-alpha/PixArt-XL-2-512x512'), **options, 'num_layers': 1}
        ).use_additional_conditions
        is told
    )


@pytest.mark.parametrize('name', PUBLISHED)
def test_published_sizes(name):
    check_published(name, *PUBLISHED[name])
