# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Qwen-Image 2.1: one causal sequence of text and image, on latents that are not packed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mmaselect.diffusion.codec import pad_to_multiple
from mmaselect.diffusion.families.base import FEATURES, POST_FEATURES, Published, Tap
from mmaselect.diffusion.families.lookup import register_family
from mmaselect.diffusion.families.text import TextFamily
from mmaselect.diffusion.families.tokens import last_tokens, usual_taps
from mmaselect.diffusion.single_file import OriginalLayout

# The image is handed over in groups of 2x2 tokens.
_GROUP = 2
# Positions on each side of the origin, on which an image is centered.
_BEFORE, _AFTER = 1024, 8192


def image_tokens(output: Tensor, grid: tuple[int, int]) -> Tensor:
    """Tokens of the image, which come last, without those that made its sides even.

    Args:
        output: (B, text + image, C).
        grid: Token grid (h, w), of any sides.

    Returns:
        Tensor: (B, h * w, C).
    """
    rows, columns = (side + side % _GROUP for side in grid)
    tokens = last_tokens(output, (rows, columns))
    if (rows, columns) == grid:
        return tokens
    return tokens.unflatten(1, (rows, columns))[:, : grid[0], : grid[1]].flatten(1, 2)


_CONFIG = {
    'patch_size': 1,
    'in_channels': 64,
    'out_channels': 64,
    'num_layers': 32,
    'attention_head_dim': 128,
    'num_attention_heads': 32,
    'context_in_dim': 4096,
    'mlp_ratio': 3,
    'axes_dims_rope': (16, 56, 56),
}


@register_family
class QwenImage21Family(TextFamily):
    """``QwenImage21Transformer2DModel``: ``Qwen/Qwen-Image-2.1``, without reference images.

    Text comes first in the sequence, and no text token sees the image. The model takes an even
    number of rows and columns of tokens: where an image makes an odd one, the last of its latent is
    repeated, and left out of the maps again.
    """

    transformer_class = 'QwenImage21Transformer2DModel'
    title = 'Qwen-Image 2.1'
    pipeline_class = 'QwenImage21Pipeline'
    min_diffusers = '0.42'
    features = FEATURES + POST_FEATURES
    waits_in = 'transformer_qwenimage21.py: repeats tokens by lengths on the device'
    original_layout = OriginalLayout('transformer_blocks')
    published = (
        Published('Qwen/Qwen-Image-2.1', _CONFIG, 16, 'flow, shift by size', 'qwen-research'),
    )

    def check_grid(self, grid: tuple[int, int], stride: int) -> None:
        limit = 2 * min(_BEFORE, _AFTER)
        self.refuse_beyond(limit, grid, stride)

    def embed(self, pipeline: Any, prompt: str) -> dict[str, Tensor]:
        # Of a single prompt no token is padding, and there is no mask.
        embeds, _, _ = pipeline.encode_prompt(prompt, device=torch.device('cpu'))
        return {'prompt_embeds': embeds}

    def run(
        self,
        transformer: nn.Module,
        latent: Tensor,
        model_time: Tensor,
        condition: Mapping[str, Tensor],
    ) -> None:
        embeds = condition['prompt_embeds']
        latent = pad_to_multiple(latent, _GROUP)
        rows, columns = self.grid(latent)
        text = torch.zeros(embeds.shape[:2], dtype=torch.bool, device=embeds.device)
        transformer(
            latent.flatten(2).transpose(1, 2),
            encoder_hidden_states=embeds,
            timestep=model_time.to(latent.dtype) / 1000,
            img_shapes=[[(1, rows, columns)]] * len(latent),
            img_mask=torch.cat([text, text.new_ones(len(text), rows * columns // 4)], dim=1),
        )

    def tap(self, transformer: nn.Module, index: int, feature: str) -> Tap:
        block = self.block(transformer, index)
        tap = usual_taps(block, block.attn, image_tokens)[feature]
        # The text attends to itself in a product of its own, before the image's.
        return tap if tap.operand is None else replace(tap, product=1)
