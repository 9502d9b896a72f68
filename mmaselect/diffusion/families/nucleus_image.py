# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Nucleus-Image: image tokens attend to themselves and to text; experts choose their tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mmaselect.diffusion.families.base import FEATURES, POST_FEATURES, Published, Tap, whole_output
from mmaselect.diffusion.families.flux import pack
from mmaselect.diffusion.families.lookup import register_family
from mmaselect.diffusion.families.text import TextFamily
from mmaselect.diffusion.families.tokens import first_tokens, usual_taps

# Positions on each side of the origin, on which an image is centered.
_POSITIONS = 4096
# Which blocks are mixtures of experts, for models whose last block is not one.
_DENSE_LAST, _MIXED_LAST = (
    'leave_first_three_and_last_block_dense',
    'leave_first_three_blocks_dense',
)


_CONFIG = {
    'patch_size': 2,
    'in_channels': 64,
    'out_channels': 16,
    'num_layers': 32,
    'attention_head_dim': 128,
    'num_attention_heads': 16,
    'num_key_value_heads': 4,
    'joint_attention_dim': 4096,
    'dense_moe_strategy': 'leave_first_three_blocks_dense',
    'num_experts': 64,
    'moe_intermediate_dim': 1344,
    'capacity_factors': [0.0] * 3 + [4.0] * 2 + [2.0] * 27,
    'use_grouped_mm': True,
}


@register_family
class NucleusImageFamily(TextFamily):
    """``NucleusMoEImageTransformer2DModel``: ``NucleusAI/Nucleus-Image``.

    Blocks run over image tokens only. Each expert takes the tokens of an image that it scores
    highest, so that images of a batch do not compete. Keys and values have fewer heads than
    queries, so fewer channels; ``'key_post'`` is read after the heads were repeated.
    """

    transformer_class = 'NucleusMoEImageTransformer2DModel'
    title = 'Nucleus-Image'
    pipeline_class = 'NucleusMoEImagePipeline'
    min_diffusers = '0.39'
    features = FEATURES + POST_FEATURES
    waits_in = 'transformer_nucleusmoe_image.py: makes positions on the CPU'
    published = (Published('NucleusAI/Nucleus-Image', _CONFIG, 16, 'flow', 'see its page'),)

    @property
    def in_channels(self) -> int:
        return int(self.config['in_channels']) // self.patch_size**2

    def channels(self, block: int, feature: str) -> int:
        if feature not in ('key', 'value'):
            return self.width
        heads = self.config.get('num_key_value_heads') or self.config['num_attention_heads']
        return int(self.config['attention_head_dim']) * int(heads)

    def check_grid(self, grid: tuple[int, int], stride: int) -> None:
        limit = 2 * _POSITIONS
        self.refuse_beyond(limit, grid, stride)

    def build_overrides(self, num_blocks: int) -> dict[str, Any]:
        overrides = super().build_overrides(num_blocks)
        # The last block that is built is not the last of the model.
        if num_blocks < self.num_blocks and self.config['dense_moe_strategy'] == _DENSE_LAST:
            overrides['dense_moe_strategy'] = _MIXED_LAST
        if not hasattr(nn.functional, 'grouped_mm'):
            # Before PyTorch 2.9: expert by expert gives the same.
            overrides['use_grouped_mm'] = False
        return overrides

    def embed(self, pipeline: Any, prompt: str) -> dict[str, Tensor]:
        embeds, mask = pipeline.encode_prompt(
            prompt,
            device=torch.device('cpu'),
            max_sequence_length=pipeline.default_max_sequence_length,
        )
        condition = {'encoder_hidden_states': embeds}
        # Prompts are padded to a multiple of eight tokens; there is no mask where none was added.
        return condition if mask is None else {**condition, 'encoder_hidden_states_mask': mask}

    def run(
        self,
        transformer: nn.Module,
        latent: Tensor,
        model_time: Tensor,
        condition: Mapping[str, Tensor],
    ) -> None:
        transformer(
            pack(latent),
            timestep=model_time.to(latent.dtype) / 1000,
            img_shapes=[(1, *self.grid(latent))] * len(latent),
            **condition,
        )

    def tap(self, transformer: nn.Module, index: int, feature: str) -> Tap:
        block = self.block(transformer, index)
        return usual_taps(block, block.attn, whole_output, post=first_tokens)[feature]
