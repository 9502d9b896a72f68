# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Qwen-Image (arXiv 2508.02324): double-stream blocks, packed latents, rotary positions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from mmaselect.diffusion.families.base import (
    FEATURES,
    POST_FEATURES,
    Published,
    Tap,
    whole_output,
)
from mmaselect.diffusion.families.flux import pack
from mmaselect.diffusion.families.lookup import register_family
from mmaselect.diffusion.families.text import TextFamily
from mmaselect.diffusion.families.tokens import last_tokens, member, usual_taps

# Positions on each side of the origin; an image is centered on it, and the text comes after it.
_POSITIONS, _MAX_TEXT = 4096, 1024


_CONFIG = {
    'patch_size': 2,
    'in_channels': 64,
    'out_channels': 16,
    'num_layers': 60,
    'attention_head_dim': 128,
    'num_attention_heads': 24,
    'joint_attention_dim': 3584,
    'guidance_embeds': False,
    'axes_dims_rope': [16, 56, 56],
}


@register_family
class QwenImageFamily(TextFamily):
    """``QwenImageTransformer2DModel``: ``Qwen/Qwen-Image``; ``-Edit``, without reference images."""

    transformer_class = 'QwenImageTransformer2DModel'
    title = 'Qwen-Image'
    features = FEATURES + POST_FEATURES
    pipeline_class = 'QwenImagePipeline'
    # 0.35 and 0.36 have the class too, but call it with the lengths of the prompts.
    min_diffusers = '0.37'
    published = (Published('Qwen/Qwen-Image', _CONFIG, 16, 'flow, shift by size', 'apache-2.0'),)

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        if config.get('use_layer3d_rope') or config.get('use_additional_t_cond'):
            raise ValueError(
                'Qwen-Image-Layered splits an RGBA image into layers and is not supported: use '
                "'Qwen/Qwen-Image' or one of its editing variants"
            )

    @property
    def patch_size(self) -> int:
        return 2

    @property
    def in_channels(self) -> int:
        return int(self.config['in_channels']) // self.patch_size**2

    def check_grid(self, grid: tuple[int, int], stride: int) -> None:
        limit = 2 * (_POSITIONS - _MAX_TEXT)
        if max(grid) > limit:
            raise ValueError(
                f'{self.title} has positions for {limit}x{limit} tokens next to a prompt, and this '
                f'image makes {grid[0]}x{grid[1]}: resize or crop it to at most {limit * stride} '
                f'pixels a side'
            )

    def embed(self, pipeline: Any, prompt: str, **options: Any) -> dict[str, Tensor]:
        embeds, mask = pipeline.encode_prompt(prompt, device='cpu')
        # Without padding, as one prompt is, the newer diffusers return no mask.
        return (
            {'prompt_embeds': embeds} if mask is None else {'prompt_embeds': embeds, 'mask': mask}
        )

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
            encoder_hidden_states=condition['prompt_embeds'],
            encoder_hidden_states_mask=condition.get('mask'),
            img_shapes=[[(1, *self.grid(latent))]] * len(latent),
        )

    def tap(self, transformer: nn.Module, index: int, feature: str) -> Tap:
        block = self.block(transformer, index)
        # (image, text) from the attention, but (text, image) from the block.
        taps = usual_taps(block, block.attn, whole_output, member(0), member(1), last_tokens)
        return taps[feature]
