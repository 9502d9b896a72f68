# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
import pytest
import torch
from diffusers import ChromaPipeline, ChromaTransformer2DModel, FlowMatchEulerDiscreteScheduler
from harness import FamilyProof, item, last_tokens
from published import check_published, published_config
from tiny_text import t5_encoder, t5_tokenizer
from tiny_vae import kl_vae

from mmaselect.diffusion.families.chroma import ChromaFamily

#: Name to width, blocks, and parameters in billions as published.
PUBLISHED = {
    'lodestones/Chroma1-HD': (3072, 57, 8.9),
}

DOUBLE, SINGLE = 2, 3


class TestChroma(FamilyProof):
    """Blocks 0, 1: two streams; 2, 3, 4: one. All five find their rows of one modulation table."""

    num_blocks = DOUBLE + SINGLE
    stride = 8
    stacks = ('transformer_blocks', 'single_transformer_blocks')

    @property
    def chosen_blocks(self):
        return (0, 1, 2, 4)  # the last and the first of the two stacks, too

    def build(self, folder):
        ChromaPipeline(
            transformer=ChromaTransformer2DModel(
                patch_size=1,
                in_channels=64,
                num_layers=DOUBLE,
                num_single_layers=SINGLE,
                attention_head_dim=16,
                num_attention_heads=2,
                joint_attention_dim=32,
                axes_dims_rope=(4, 6, 6),
                approximator_num_channels=16,
                approximator_hidden_dim=24,
                approximator_layers=2,
            ),
            scheduler=FlowMatchEulerDiscreteScheduler(),
            vae=kl_vae(scale=0.3611, shift=0.1159),
            text_encoder=t5_encoder(32),
            tokenizer=t5_tokenizer(max_length=512),
        ).save_pretrained(folder)

    def points(self, block):
        if block < DOUBLE:
            path = f'transformer_blocks.{block}'
            pick, attention, output = last_tokens, item(0), item(1)
        else:
            path = f'single_transformer_blocks.{block - DOUBLE}'
            pick = attention = output = last_tokens
        return {
            'query': (f'{path}.attn.to_q', pick),
            'key': (f'{path}.attn.to_k', pick),
            'value': (f'{path}.attn.to_v', pick),
            'attention': (f'{path}.attn', attention),
            'output': (path, output),
        }

    def post_points(self, block):
        return self.points(block)['attention'][0], last_tokens

    def stock_latents(self, pipeline, noisy):
        return pipeline._pack_latents(noisy, *noisy.shape)

    def test_missing_blocks_leave_no_weights(self, load, pipeline):
        """Placeholders keep the count of blocks that the modulation table is read by."""
        transformer = load(blocks=0).transformer
        assert len(transformer.transformer_blocks) == DOUBLE
        assert len(transformer.single_transformer_blocks) == SINGLE
        left_out = [*transformer.transformer_blocks[1:], *transformer.single_transformer_blocks]
        assert not [p for block in left_out for p in block.parameters()]
        table = pipeline.transformer.time_text_embed.mod_proj
        assert torch.equal(transformer.time_text_embed.mod_proj, table)


@pytest.mark.parametrize('num_blocks', [1, 19, 20, 57])
def test_build_overrides(num_blocks):
    family = ChromaFamily(published_config('lodestones/Chroma1-HD'))
    built = family.build_overrides(num_blocks)
    assert built['num_layers'] == min(num_blocks, 19)
    assert sum(built.values()) == num_blocks


@pytest.mark.parametrize('name', PUBLISHED)
def test_published_sizes(name):
    check_published(name, *PUBLISHED[name])
