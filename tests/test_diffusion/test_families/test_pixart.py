# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
import json

import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
)
from harness import FeatureProof, item
from published import check_published
from rooted_proof import RootedProof
from tiny_text import t5_encoder, t5_tokenizer
from tiny_vae import kl_vae

from mmaselect.diffusion import FrozenDiT
from mmaselect.diffusion.families.pixart import PixArtFamily

_XL = {
    'sample_size': 64,
    'patch_size': 2,
    'in_channels': 4,
    'out_channels': 8,
    'num_layers': 28,
    'num_attention_heads': 16,
    'attention_head_dim': 72,
    'cross_attention_dim': 1152,
    'caption_channels': 4096,
    'num_embeds_ada_norm': 1000,
    'norm_type': 'ada_norm_single',
}

#: Name, config as on the model page, width, blocks, parameters in billions as published.
PUBLISHED = [
    ('PixArt-alpha/PixArt-XL-2-512x512', PixArtTransformer2DModel, _XL, 1152, 28, 0.6),
    (
        'PixArt-alpha/PixArt-XL-2-1024-MS',
        PixArtTransformer2DModel,
        {**_XL, 'sample_size': 128},
        1152,
        28,
        0.6,
    ),
    (
        'PixArt-alpha/PixArt-Sigma-XL-2-1024-MS',
        PixArtTransformer2DModel,
        {**_XL, 'sample_size': 128, 'interpolation_scale': 2, 'use_additional_conditions': False},
        1152,
        28,
        0.6,
    ),
]

TEXT = 32


class PixArt:
    num_blocks = 4
    stride = 16
    sizes = ((128, 128), (64, 96), (96, 32))
    pipeline_type = PixArtSigmaPipeline
    transformer_options = {'use_additional_conditions': False}  # noqa: RUF012

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

    def added(self, noisy):
        return {'resolution': None, 'aspect_ratio': None}

    def stock_call(self, pipeline, noisy, model_time):
        embeds, mask, *_ = pipeline.encode_prompt(
            self.condition or '',
            do_classifier_free_guidance=False,
            num_images_per_prompt=len(noisy),
        )
        pipeline.transformer(
            noisy,
            encoder_hidden_states=embeds,
            encoder_attention_mask=mask,
            timestep=torch.tensor([self.timestep]).expand(len(noisy)),
            added_cond_kwargs=self.added(noisy),
            return_dict=False,
        )

    def stock_noise(self, pipeline, latent, noise, num_tokens):
        # Until its table is made, DPM-Solver's is in the wrong order.
        pipeline.scheduler.set_timesteps(pipeline.scheduler.config.num_train_timesteps)
        return super().stock_noise(pipeline, latent, noise, num_tokens)

    def points(self, block):
        path, whole = f'transformer_blocks.{block}', item(slice(None))
        return {
            'query': (f'{path}.attn1.to_q', whole),
            'key': (f'{path}.attn1.to_k', whole),
            'value': (f'{path}.attn1.to_v', whole),
            'attention': (f'{path}.attn1', whole),
            'output': (path, whole),
        }


class TestPixArtSigma(PixArt, RootedProof):
    pass


class TestPixArtAlpha1024(PixArt, FeatureProof):
    """Alpha at 1024 pixels is told the size; a prompt, and not the empty one."""

    pipeline_type = PixArtAlphaPipeline
    transformer_options = {}  # noqa: RUF012
    condition = 'A red bird'

    def added(self, noisy):
        height, width = (8 * side for side in noisy.shape[-2:])
        return {
            'resolution': torch.tensor([[height, width]] * len(noisy)).float(),
            'aspect_ratio': torch.tensor([[height / width]] * len(noisy)),
        }

    def test_the_size_is_heard(self, load):
        """A wide image and a tall one of the same tokens would otherwise tell less apart."""
        dit = load()
        latent, noise, *_ = self.noisy(dit, (64, 64))
        (told,) = dit.features(latent, 300, noise).values()
        dit.condition_pixels_per_latent.mul_(2)
        (doubled,) = dit.features(latent, 300, noise).values()
        assert not torch.allclose(told, doubled)


def test_each_pipeline_embeds_its_own_way(tmp_path):
    """Alpha reads 120 tokens of a prompt, sigma 300."""
    length = {}
    for proof in (TestPixArtSigma(), TestPixArtAlpha1024()):
        folder = tmp_path / proof.pipeline_type.__name__
        proof.build(folder)
        dit = FrozenDiT.from_pretrained(folder)
        length[proof.pipeline_type] = dit.condition_encoder_hidden_states.shape[1]
    assert length == {PixArtSigmaPipeline: 300, PixArtAlphaPipeline: 120}


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
    [({}, False), ({'sample_size': 128}, True), (PUBLISHED[2][2], False)],
    ids=['alpha-512', 'alpha-1024', 'sigma'],
)
def test_which_models_are_told_the_size(options, told):
    family = PixArtFamily({**_XL, **options})
    assert family.knows_size is told
    assert (
        PixArtTransformer2DModel.from_config(
            {**_XL, **options, 'num_layers': 1}
        ).use_additional_conditions
        is told
    )


@pytest.mark.parametrize('model', PUBLISHED, ids=lambda model: model[0])
def test_published_sizes(model):
    check_published(model)
