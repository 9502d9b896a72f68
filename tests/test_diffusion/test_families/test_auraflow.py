# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
import pytest
import torch
from diffusers import (
    AuraFlowPipeline,
    AuraFlowTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
)
from harness import FeatureProof, item, last_tokens
from published import check_published, published_config
from rooted_proof import RootedProof
from tiny_language import umt5
from tiny_text import t5_tokenizer
from tiny_vae import kl_vae

from mmaselect.diffusion import FrozenDiT
from mmaselect.diffusion.families.auraflow import AuraFlowFamily

#: Name to width, blocks, and parameters in billions as published.
PUBLISHED = {
    'fal/AuraFlow-v0.3': (3072, 36, 6.8),
}

TEXT, WIDTH, JOINT = 8, 16, 2
STACKS = ('joint_transformer_blocks', 'single_transformer_blocks')


class AuraFlow:
    num_blocks = 5
    stride = 16
    sizes = ((128, 128), (64, 96), (96, 32))
    # The last joint block and the first single one are next to each other.
    chosen_blocks = (0, 1, 2, 4)

    def build(self, folder):
        tokenizer = t5_tokenizer(max_length=256)
        AuraFlowPipeline(
            tokenizer=tokenizer,
            text_encoder=umt5(tokenizer, TEXT),
            vae=kl_vae(4, scale=0.13025, shift=0.0, levels=4),
            transformer=AuraFlowTransformer2DModel(
                sample_size=8,
                num_mmdit_layers=JOINT,
                num_single_dit_layers=self.num_blocks - JOINT,
                attention_head_dim=8,
                num_attention_heads=2,
                joint_attention_dim=TEXT,
                caption_projection_dim=WIDTH,
                pos_embed_max_size=64,
            ),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=1.73),
        ).save_pretrained(folder)

    def points(self, block):
        joint = block < JOINT
        path = f'{STACKS[0]}.{block}' if joint else f'{STACKS[1]}.{block - JOINT}'
        image = item(slice(None)) if joint else last_tokens
        return {
            'query': (f'{path}.attn.to_q', image),
            'key': (f'{path}.attn.to_k', image),
            'value': (f'{path}.attn.to_v', image),
            'attention': (f'{path}.attn', item(0) if joint else last_tokens),
            'output': (path, item(1) if joint else last_tokens),
        }

    def post_points(self, block):
        return self.points(block)['attention'][0], last_tokens


class TestAuraFlow(AuraFlow, RootedProof):
    stacks = STACKS

    def test_too_large_an_image_is_refused(self, load):
        """A wider one would silently get the positions of other rows."""
        dit = load()
        dit.encode(torch.zeros(1, 3, 128, 112))
        with pytest.raises(ValueError, match=r'8x8 tokens.*128x128; got 1x9 .*16x144'):
            dit.encode(torch.zeros(1, 3, 16, 144))


class TestAuraFlowWithAPrompt(AuraFlow, FeatureProof):
    condition = prompt = 'a red bird'


def test_blocks_are_counted_through_both_kinds(saved):
    folder = saved(TestAuraFlow)
    counts = []
    for block in (0, 1, 2, 3):
        transformer = FrozenDiT.from_pretrained(folder, blocks=block).transformer
        counts.append(
            (len(transformer.joint_transformer_blocks), len(transformer.single_transformer_blocks))
        )
    assert counts == [(1, 0), (2, 0), (2, 1), (2, 2)]


def test_published_sizes_are_accepted():
    family = AuraFlowFamily(published_config('fal/AuraFlow-v0.3'))
    family.check_grid((96, 96), 16)
    with pytest.raises(ValueError, match='1536x1536'):
        family.check_grid((97, 96), 16)


@pytest.mark.parametrize('name', PUBLISHED)
def test_published_sizes(name):
    check_published(name, *PUBLISHED[name])
