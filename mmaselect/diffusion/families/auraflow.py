# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""AuraFlow (fal): a few blocks with two streams, then many with one; learned positions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mmaselect.diffusion.families.base import (
    FEATURES,
    POST_FEATURES,
    Published,
    Tap,
    whole_output,
)
from mmaselect.diffusion.families.lookup import register_family
from mmaselect.diffusion.families.text import TextFamily
from mmaselect.diffusion.families.tokens import last_tokens, member, usual_taps
from mmaselect.diffusion.single_file import OriginalLayout

_V3 = {
    'sample_size': 64,
    'patch_size': 2,
    'in_channels': 4,
    'out_channels': 4,
    'num_mmdit_layers': 4,
    'num_single_dit_layers': 32,
    'attention_head_dim': 256,
    'num_attention_heads': 12,
    'joint_attention_dim': 2048,
    'caption_projection_dim': 3072,
    'pos_embed_max_size': 9216,
}


@register_family
class AuraFlowFamily(TextFamily):
    """``AuraFlowTransformer2DModel``: ``fal/AuraFlow-v0.3``, ...

    Blocks 0 to 3 of the published models have a stream for the image and one for the text, the 32
    after them have one sequence: 8 registers, text, image. There is QK norm, no rotary embedding.
    """

    transformer_class = 'AuraFlowTransformer2DModel'
    title = 'AuraFlow'
    pipeline_class = 'AuraFlowPipeline'
    stacks = (
        ('num_mmdit_layers', 'joint_transformer_blocks'),
        ('num_single_dit_layers', 'single_transformer_blocks'),
    )
    features = FEATURES + POST_FEATURES
    original_layout = OriginalLayout('double_layers', 'single_layers')
    published = (Published('fal/AuraFlow-v0.3', _V3, 16, 'flow, shift 1.73', 'apache-2.0'),)

    def check_grid(self, grid: tuple[int, int], stride: int) -> None:
        # Beyond it the positions of other rows would be taken, without an error.
        side = int(int(self.config['pos_embed_max_size']) ** 0.5)
        if max(grid) > side:
            raise ValueError(
                f'this {self.title} has learned positions for {side}x{side} tokens, that is images '
                f'up to {side * stride}x{side * stride}; got {grid[0]}x{grid[1]} tokens '
                f'({grid[0] * stride}x{grid[1] * stride}): resize or crop the images'
            )

    def embed(self, pipeline: Any, prompt: str) -> dict[str, Tensor]:
        states, *_ = pipeline.encode_prompt(
            prompt, do_classifier_free_guidance=False, device=torch.device('cpu')
        )
        return {'encoder_hidden_states': states}

    def run(
        self,
        transformer: nn.Module,
        latent: Tensor,
        model_time: Tensor,
        condition: Mapping[str, Tensor],
    ) -> None:
        transformer(latent, timestep=(model_time / 1000).to(latent.dtype), **condition)

    def tap(self, transformer: nn.Module, index: int, feature: str) -> Tap:
        block = self.block(transformer, index)
        if index < self.stack_lengths[0]:
            # (image, text) from the attention, but (text, image) from the block.
            taps = usual_taps(block, block.attn, whole_output, member(0), member(1), last_tokens)
        else:
            taps = usual_taps(block, block.attn, last_tokens)
        return taps[feature]
