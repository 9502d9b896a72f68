# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Lumina-Next (arXiv 2406.18583): self- and cross-attention add up, and heads are grouped."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

import torch
from diffusers.models.embeddings import get_2d_rotary_pos_embed_lumina
from torch import Tensor, nn

from mmaselect.diffusion.families.base import FEATURES, POST_FEATURES, Published, Tap, whole_output
from mmaselect.diffusion.families.lookup import register_family
from mmaselect.diffusion.families.text import TextFamily, embed_cleaned
from mmaselect.diffusion.families.tokens import usual_taps

# From its pipeline: pixels per latent pixel, and rows and columns of rotary positions.
_STRIDE, _POSITIONS = 8, 384


_CONFIG = {
    'sample_size': 128,
    'hidden_size': 2304,
    'num_layers': 24,
    'num_attention_heads': 32,
    'num_kv_heads': 8,
}


@functools.lru_cache(maxsize=8)
def _positions(
    head_width: int, linear: float, ntk: float, grid: tuple[int, int], device: torch.device
) -> Tensor:
    """Rotary positions (h, w, channels of a head / 2), complex; diffusers makes them on the CPU."""
    table = get_2d_rotary_pos_embed_lumina(
        head_width, _POSITIONS, _POSITIONS, linear_factor=linear, ntk_factor=ntk
    )
    return table[: grid[0], : grid[1]].contiguous().to(device)


@register_family
class LuminaNextFamily(TextFamily):
    """``LuminaNextDiT2DModel``: ``Alpha-VLLM/Lumina-Next-SFT-diffusers``.

    Text enters by cross-attention only, so every token is an image token. Features are those of the
    self-attention, ``attn1``; its output is read before the projection that it shares with the
    cross-attention. Keys and values have fewer heads than queries, so fewer channels;
    ``'key_post'`` is read after the heads were repeated.
    """

    transformer_class = 'LuminaNextDiT2DModel'
    title = 'Lumina-Next'
    pipeline_class = 'LuminaPipeline'
    stacks = (('num_layers', 'layers'),)
    features = FEATURES + POST_FEATURES
    published = (
        Published('Alpha-VLLM/Lumina-Next-SFT-diffusers', _CONFIG, 16, 'flow', 'apache-2.0'),
    )

    @property
    def width(self) -> int:
        return int(self.config['hidden_size'])

    @property
    def head_width(self) -> int:
        """Channels of a head."""
        return self.width // int(self.config['num_attention_heads'])

    def channels(self, block: int, feature: str) -> int:
        heads = self.config.get('num_kv_heads')
        if feature not in ('key', 'value') or heads is None:
            return self.width
        return self.head_width * int(heads)

    def check_grid(self, grid: tuple[int, int], stride: int) -> None:
        if max(grid) > _POSITIONS:
            side = _POSITIONS * stride
            raise ValueError(
                f'{self.title} has rotary positions for {_POSITIONS}x{_POSITIONS} tokens, that is '
                f'images up to {side}x{side}; got {grid[0]}x{grid[1]} tokens '
                f'({grid[0] * stride}x{grid[1] * stride}): resize or crop the images'
            )

    def embed(self, pipeline: Any, prompt: str) -> dict[str, Tensor]:
        states, mask = embed_cleaned(pipeline, prompt, self.title)
        return {'encoder_hidden_states': states, 'encoder_mask': mask}

    def run(
        self,
        transformer: nn.Module,
        latent: Tensor,
        model_time: Tensor,
        condition: Mapping[str, Tensor],
    ) -> None:
        height, width = (_STRIDE * side for side in latent.shape[-2:])
        base = _STRIDE * int(self.config['sample_size'])
        scale = math.sqrt(width * height / base**2)
        # To this model 0 is noise and 1 is the image. Positions are stretched to the size of the
        # image, except where there is no noise at all: there their frequencies are.
        time = 1 - model_time / 1000
        noisy, clean = (
            _positions(self.head_width, *factors, self.grid(latent), latent.device)
            for factors in ((scale, 1.0), (1.0, scale))
        )
        transformer(
            latent,
            timestep=time,
            # Which of the two is a question to the device, for whose answer nobody waits.
            image_rotary_emb=torch.where(time[0] < 1, noisy, clean),
            cross_attention_kwargs={'base_sequence_length': (base // 16) ** 2},
            **condition,
        )

    def tap(self, transformer: nn.Module, index: int, feature: str) -> Tap:
        block = self.block(transformer, index)
        if feature == 'attention':
            # (B, N, heads, channels of a head)
            return Tap(block.attn1, lambda output, grid: output.flatten(2))
        return usual_taps(block, block.attn1, whole_output)[feature]
