# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""DiT next to its pipeline; what else is true of it is proved in ``test_frozen_dit.py``."""

import pytest
import torch
from diffusers import DDPMScheduler, DiTPipeline, DiTTransformer2DModel
from harness import FeatureProof, item
from published import check_published, published_config
from tiny_vae import kl_vae

# 0.675 billion in the paper; diffusers gives every block a copy of the embedding of time and class.
#: Name to width, blocks, and parameters in billions as published.
PUBLISHED = {
    'facebook/DiT-XL-2-256': (1152, 28, 0.75),
    'facebook/DiT-XL-2-512': (1152, 28, 0.75),
}


class TestDiT(FeatureProof):
    num_blocks = 4
    stride = 8
    # The pipeline makes squares of one size.
    sizes = ((64, 64),) * 3

    def build(self, folder):
        DiTPipeline(
            transformer=DiTTransformer2DModel(
                sample_size=16,
                in_channels=4,
                out_channels=8,
                num_layers=self.num_blocks,
                attention_head_dim=8,
                num_attention_heads=2,
                num_embeds_ada_norm=1000,
            ),
            scheduler=DDPMScheduler(beta_schedule='linear'),
            vae=kl_vae(4, scale=0.18215, shift=0.0),
        ).save_pretrained(folder)

    def steps(self, pipeline, noisy, timestep):
        # One step of this spacing is at 0 plus the offset.
        config = {**pipeline.scheduler.config, 'timestep_spacing': 'leading'}
        pipeline.scheduler = DDPMScheduler.from_config({**config, 'steps_offset': timestep})
        return {'num_inference_steps': 1}

    def stock_call(self, pipeline, noisy, size, timestep):
        """It takes no latents, so they are put in the place of those that it draws."""
        handle = pipeline.transformer.register_forward_pre_hook(
            lambda module, args: (noisy.to(module.dtype), *args[1:])
        )
        with handle:
            pipeline(
                [1000] * len(noisy),
                guidance_scale=1.0,
                output_type='pt',
                **self.steps(pipeline, noisy, timestep),
            )

    def points(self, block):
        path, whole = f'transformer_blocks.{block}', item(slice(None))
        return {
            'query': (f'{path}.attn1.to_q', whole),
            'key': (f'{path}.attn1.to_k', whole),
            'value': (f'{path}.attn1.to_v', whole),
            'attention': (f'{path}.attn1', whole),
            'output': (path, whole),
        }


@pytest.mark.parametrize('name', PUBLISHED)
def test_published_sizes(name):
    check_published(name, *PUBLISHED[name])


def test_the_papers_number_of_weights():
    with torch.device('meta'):
        model = DiTTransformer2DModel(**published_config('facebook/DiT-XL-2-256'))
    copies = [block.norm1.emb for block in model.transformer_blocks][1:]
    repeated = sum(p.numel() for copy in copies for p in copy.parameters())
    total = sum(p.numel() for p in model.parameters())
    assert total - repeated == pytest.approx(0.675e9, rel=1e-3)
