# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
from typing import ClassVar

import pytest
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    NucleusMoEImagePipeline,
    NucleusMoEImageTransformer2DModel,
)
from harness import FamilyProof, FeatureProof, first_tokens, item
from published import check_published, published_config
from tiny_chat import qwen3_vl_chat, qwen3_vl_processor
from tiny_vae import qwen_image_vae, wan_latent

from mmaselect.diffusion.families.nucleus_image import NucleusImageFamily

#: Name to width, blocks, and parameters in billions as published.
PUBLISHED = {
    'NucleusAI/Nucleus-Image': (2048, 32, 16.92),  # 33.8 GB at 16 bit; '17B'
}

TEXT, HEAD, HEADS = 16, 16, 4


class NucleusImage:
    num_blocks = 5
    stride = 16
    sizes = ((128, 128), (64, 96), (96, 32))
    call_options: ClassVar = {'guidance_scale': 1.0}
    dynamic = False
    grouped = False
    # Block 3 is a mixture of experts, and the last one is dense.
    strategy = 'leave_first_three_and_last_block_dense'

    @property
    def chosen_blocks(self):
        return (0, 2, 3, 4)

    def build(self, folder):
        processor = qwen3_vl_processor()
        transformer = NucleusMoEImageTransformer2DModel(
            patch_size=2,
            in_channels=16,
            out_channels=4,
            num_layers=self.num_blocks,
            attention_head_dim=HEAD,
            num_attention_heads=HEADS,
            num_key_value_heads=HEADS // 2,
            joint_attention_dim=TEXT,
            axes_dims_rope=(4, 6, 6),
            dense_moe_strategy=self.strategy,
            num_experts=4,
            moe_intermediate_dim=16,
            capacity_factors=[0.0, 0.0, 0.0, 2.0, 1.0],
            use_grouped_mm=self.grouped,
        )
        # Constructed without any values.
        for name, parameter in transformer.named_parameters():
            if '.experts.' in name:
                torch.nn.init.normal_(parameter, std=0.2)
        NucleusMoEImagePipeline(
            transformer=transformer,
            scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=self.dynamic),
            vae=qwen_image_vae(),
            # The prompt is read eight layers before the end.
            text_encoder=qwen3_vl_chat(processor, TEXT, layers=9),
            processor=processor,
        ).save_pretrained(folder)

    def points(self, block):
        path, whole = f'transformer_blocks.{block}', item(slice(None))
        return {
            'query': (f'{path}.attn.to_q', whole),
            'key': (f'{path}.attn.to_k', whole),
            'value': (f'{path}.attn.to_v', whole),
            'attention': (f'{path}.attn', whole),
            'output': (path, whole),
        }

    def post_points(self, block):
        return f'transformer_blocks.{block}.attn', first_tokens

    def stock_latents(self, pipeline, noisy):
        return pipeline._pack_latents(noisy, *noisy.shape, 2)

    def stock_latent(self, pipeline, images):
        return wan_latent(pipeline, images)


class TestNucleusImage(NucleusImage, FamilyProof):
    def test_keys_and_values_have_fewer_channels(self, load):
        dit = load(blocks=0, features=load().family.features)
        channels = {feature: dit.channels((0, feature)) for feature in dit.family.features}
        narrow = {feature for feature, count in channels.items() if count == HEAD * HEADS // 2}
        assert narrow == {'key', 'value'}

    def test_the_last_block_that_is_built_is_as_published(self, load):
        blocks = [load(blocks=index).transformer.transformer_blocks[-1] for index in (2, 3, 4)]
        assert [block.moe_enabled for block in blocks] == [False, True, False]


class TestNucleusImageWithAPrompt(NucleusImage, FeatureProof):
    """Experts in the last block, too; shifted by the size of the image."""

    condition = prompt = 'a red bird'
    strategy = 'leave_first_three_blocks_dense'
    dynamic = True
    grouped = hasattr(torch.nn.functional, 'grouped_mm')  # of PyTorch 2.9 and later


def test_too_large_an_image_is_refused():
    family = NucleusImageFamily(published_config('NucleusAI/Nucleus-Image'))
    family.check_grid((8192, 1), 16)
    with pytest.raises(ValueError, match=r'8192x8192 tokens.*1x8193.*131072 pixels'):
        family.check_grid((1, 8193), 16)


@pytest.mark.parametrize('name', PUBLISHED)
def test_published_sizes(name):
    check_published(name, *PUBLISHED[name])
