# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""PixArt-alpha (arXiv 2310.00426) and -sigma (arXiv 2403.04692): DiT with cross-attention to T5."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mmaselect.diffusion.families.base import Published, Tap, whole_output
from mmaselect.diffusion.families.lookup import register_family
from mmaselect.diffusion.families.pixels import image_size, pixel_condition
from mmaselect.diffusion.families.text import TextFamily, embed_cleaned
from mmaselect.diffusion.families.tokens import usual_taps
from mmaselect.diffusion.loading import PipelineSource

_XL = {
    'sample_size': 64,
    'patch_size': 2,
    'in_channels': 4,
    'out_channels': 8,
    'num_layers': 28,
    'num_attention_heads': 16,
    'attention_head_dim': 72,
    'cross_attention_dim': 1152,
    'caption_channels': 4096,
    'num_embeds_ada_norm': 1000,
    'norm_type': 'ada_norm_single',
}
_SIGMA = {**_XL, 'sample_size': 128, 'interpolation_scale': 2, 'use_additional_conditions': False}


@register_family
class PixArtFamily(TextFamily):
    """``PixArtTransformer2DModel``: ``PixArt-alpha/PixArt-XL-2-512x512``, ``...-Sigma-...``.

    Text enters by cross-attention only, so every token is an image token. There is neither QK norm
    nor rotary embedding. Positions are computed for any size.
    """

    transformer_class = 'PixArtTransformer2DModel'
    title = 'PixArt'
    pipeline_class = 'PixArtAlphaPipeline'
    # Until 1 prompts were not cleaned.
    embedding_format = 2
    published = (
        Published('PixArt-alpha/PixArt-XL-2-512x512', _XL, 16, 'DDPM, linear', 'openrail++'),
        Published(
            'PixArt-alpha/PixArt-XL-2-1024-MS',
            {**_XL, 'sample_size': 128},
            16,
            'DDPM, linear',
            'openrail++',
        ),
        Published(
            'PixArt-alpha/PixArt-Sigma-XL-2-1024-MS', _SIGMA, 16, 'DDPM, linear', 'openrail++'
        ),
    )

    @property
    def knows_size(self) -> bool:
        """Whether the model is told resolution and aspect ratio (alpha at 1024 pixels is)."""
        asked = self.config.get('use_additional_conditions')
        return bool(asked) if asked is not None else int(self.config['sample_size']) == 128

    def pipeline_name(self, source: PipelineSource) -> str:
        # Alpha and sigma share the transformer, and read prompts of different lengths.
        return source.index()['_class_name']

    def embed(self, pipeline: Any, prompt: str) -> dict[str, Tensor]:
        states, mask = embed_cleaned(pipeline, prompt, self.title)
        return {'encoder_hidden_states': states, 'encoder_attention_mask': mask}

    def prepare_condition(
        self, spec: Any, source: PipelineSource, dtype: torch.dtype
    ) -> dict[str, Tensor]:
        size = pixel_condition(source) if self.knows_size else {}
        return {**super().prepare_condition(spec, source, dtype), **size}

    def run(
        self,
        transformer: nn.Module,
        latent: Tensor,
        model_time: Tensor,
        condition: Mapping[str, Tensor],
    ) -> None:
        size: dict[str, Tensor | None] = {'resolution': None, 'aspect_ratio': None}
        if self.knows_size:
            height, width = latent.shape[-2:]
            ratio = latent.new_full((len(latent), 1), height / width)
            size = {'resolution': image_size(latent, condition), 'aspect_ratio': ratio}
        transformer(
            latent,
            encoder_hidden_states=condition['encoder_hidden_states'],
            encoder_attention_mask=condition['encoder_attention_mask'],
            timestep=model_time.long(),
            added_cond_kwargs=size,
        )

    def tap(self, transformer: nn.Module, index: int, feature: str) -> Tap:
        block = self.block(transformer, index)
        return usual_taps(block, block.attn1, whole_output)[feature]
