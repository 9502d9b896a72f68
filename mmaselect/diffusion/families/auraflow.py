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
    Tap,
    register_family,
    whole_output,
)
from mmaselect.diffusion.families.text import TextFamily
from mmaselect.diffusion.families.tokens import last_tokens, member


@register_family
class AuraFlowFamily(TextFamily):
    """``AuraFlowTransformer2DModel``: ``fal/AuraFlow-v0.3``, ...

    Blocks 0 to 3 of the published models have a stream for the image and one for the text, the 32
    after them have one sequence: 8 registers, text, image. There is QK norm, no rotary embedding.
    """

    transformer_class = 'AuraFlowTransformer2DModel'
    title = 'AuraFlow'
    pipeline_class = 'AuraFlowPipeline'
    features = FEATURES + POST_FEATURES

    @property
    def num_joint_blocks(self) -> int:
        """Blocks with a stream each for image and text; they come first."""
        return int(self.config['num_mmdit_layers'])

    @property
    def num_blocks(self) -> int:
        return self.num_joint_blocks + int(self.config['num_single_dit_layers'])

    @property
    def width(self) -> int:
        return int(self.config['num_attention_heads']) * int(self.config['attention_head_dim'])

    def check_grid(self, grid: tuple[int, int], stride: int) -> None:
        # Beyond it the positions of other rows would be taken, without an error.
        side = int(int(self.config['pos_embed_max_size']) ** 0.5)
        if max(grid) > side:
            raise ValueError(
                f'this {self.title} has learned positions for {side}x{side} tokens, that is images '
                f'up to {side * stride}x{side * stride}; got {grid[0]}x{grid[1]} tokens '
                f'({grid[0] * stride}x{grid[1] * stride}): resize or crop the images'
            )

    def build_overrides(self, num_blocks: int) -> dict[str, Any]:
        joint = min(num_blocks, self.num_joint_blocks)
        return {'num_mmdit_layers': joint, 'num_single_dit_layers': num_blocks - joint}

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

    def block(self, transformer: nn.Module, index: int) -> nn.Module:
        if index < self.num_joint_blocks:
            return transformer.joint_transformer_blocks[index]
        return transformer.single_transformer_blocks[index - self.num_joint_blocks]

    def tap(self, transformer: nn.Module, index: int, feature: str) -> Tap:
        attention = self.block(transformer, index).attn
        joint = index < self.num_joint_blocks
        if feature in POST_FEATURES:
            return Tap(attention, last_tokens, operand=feature.removesuffix('_post'))
        if feature == 'output':
            # A joint block returns (text, image), its attention (image, text).
            return Tap(self.block(transformer, index), member(1) if joint else last_tokens)
        if feature == 'attention':
            return Tap(attention, member(0) if joint else last_tokens)
        module = {'query': attention.to_q, 'key': attention.to_k, 'value': attention.to_v}[feature]
        return Tap(module, whole_output if joint else last_tokens)
