# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
import pytest
from diffusers import BriaFiboPipeline, BriaFiboTransformer2DModel, FlowMatchEulerDiscreteScheduler
from harness import FamilyProof, FeatureProof, last_tokens
from published import check_published
from test_bria import Bria
from test_flux import DOUBLE, SINGLE
from tiny_language import smollm3
from tiny_text import qwen2_tokenizer
from tiny_vae import wan_latent, wan_vae

#: Name to width, blocks, and parameters in billions as published.
PUBLISHED = {
    'briaai/FIBO': (3072, 46, 8.27),  # '8B'
}

TEXT = 16


class BriaFibo(Bria):
    stride = 16
    sizes = ((128, 128), (64, 96), (96, 32))
    # Hidden states are one more: here fewer than blocks.
    text_layers = 3

    def build(self, folder):
        BriaFiboPipeline(
            transformer=BriaFiboTransformer2DModel(
                in_channels=4,
                num_layers=DOUBLE,
                num_single_layers=SINGLE,
                attention_head_dim=16,
                num_attention_heads=2,
                joint_attention_dim=2 * TEXT,
                text_encoder_dim=TEXT,
                axes_dims_rope=[4, 6, 6],
            ),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
            vae=wan_vae(
                is_residual=True,
                in_channels=12,
                out_channels=12,
                patch_size=2,
                scale_factor_spatial=16,
            ),
            text_encoder=smollm3(TEXT, self.text_layers),
            tokenizer=qwen2_tokenizer(max_length=3000),
        ).save_pretrained(folder)

    def stock_pipeline(self, folder, **options):
        return super(Bria, self).stock_pipeline(folder, **options)

    def points(self, block):
        points = super().points(block)
        if block >= DOUBLE:
            points['output'] = (points['output'][0], last_tokens)
        return points

    def stock_latents(self, pipeline, noisy):
        return pipeline._pack_latents_no_patch(noisy, *noisy.shape)

    def stock_latent(self, pipeline, images):
        return wan_latent(pipeline, images)


class TestBriaFibo(BriaFibo, FamilyProof):
    def test_only_projections_of_needed_blocks_are_built(self, load):
        assert len(load(blocks=1).transformer.caption_projection) == 2


class TestBriaFiboWithAPrompt(BriaFibo, FeatureProof):
    """A language model with more layers than there are blocks."""

    condition = prompt = '{"short_description":"a red bird"}'
    text_layers = 6


@pytest.mark.parametrize('name', PUBLISHED)
def test_published_sizes(name):
    check_published(name, *PUBLISHED[name])
