# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""DiT beside its pipeline; what else is true of it is proved in ``test_frozen_dit.py``."""

import pytest
import torch
from diffusers import DDPMScheduler, DiTPipeline, DiTTransformer2DModel
from harness import FeatureProof, item
from published import check_published
from tiny_vae import kl_vae

_XL_256 = {
    'sample_size': 32,
    'patch_size': 2,
    'in_channels': 4,
    'out_channels': 8,
    'num_layers': 28,
    'attention_head_dim': 72,
    'num_attention_heads': 16,
    'num_embeds_ada_norm': 1000,
}
_XL_512 = {**_XL_256, 'sample_size': 64}

# 0.675 billion in the paper; diffusers gives every block a copy of the embedding of time and class.
#: Name, class, config as on the model page, width, blocks, parameters in billions as published.
PUBLISHED = [
    ('facebook/DiT-XL-2-256', DiTTransformer2DModel, _XL_256, 1152, 28, 0.75),
    ('facebook/DiT-XL-2-512', DiTTransformer2DModel, _XL_512, 1152, 28, 0.75),
]


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


@pytest.mark.parametrize('model', PUBLISHED, ids=lambda model: model[0])
def test_published_sizes(model):
    check_published(model)


def test_the_papers_number_of_weights():
    with torch.device('meta'):
        model = DiTTransformer2DModel(**_XL_256)
    copies = [block.norm1.emb for block in model.transformer_blocks][1:]
    repeated = sum(p.numel() for copy in copies for p in copy.parameters())
    total = sum(p.numel() for p in model.parameters())
    assert total - repeated == pytest.approx(0.675e9, rel=1e-3)
