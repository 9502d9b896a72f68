# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Bria FIBO: FLUX.1's blocks on unpacked latents; each reads a layer of the language model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from mmaselect.diffusion.families.base import (
    FEATURES,
    POST_FEATURES,
    TWO_STACKS,
    Published,
    Tap,
    whole_output,
)
from mmaselect.diffusion.families.flux import position_ids
from mmaselect.diffusion.families.lookup import register_family
from mmaselect.diffusion.families.text import TextFamily
from mmaselect.diffusion.families.tokens import last_tokens, member, usual_taps
from mmaselect.diffusion.loading import PipelineSource

_CONFIG = {
    'in_channels': 48,
    'num_layers': 8,
    'num_single_layers': 38,
    'attention_head_dim': 128,
    'num_attention_heads': 24,
    'joint_attention_dim': 4096,
    'text_encoder_dim': 2048,
}


@register_family
class BriaFiboFamily(TextFamily):
    """``BriaFiboTransformer2DModel``: ``briaai/FIBO``; ``-Edit``, without an image to edit.

    Blocks are counted through both stacks; in single-stream ones the text's tokens come first. The
    model was trained on captions in JSON, and a prompt is taken as it is.
    """

    transformer_class = 'BriaFiboTransformer2DModel'
    title = 'Bria FIBO'
    pipeline_class = 'BriaFiboPipeline'
    min_diffusers = '0.36'
    stacks = TWO_STACKS
    features = FEATURES + POST_FEATURES
    published = (
        Published('briaai/FIBO', _CONFIG, 16, 'flow, shift by size', 'bria-fibo', gated=True),
    )

    def pipeline_parts(self, source: PipelineSource, options: Mapping[str, Any]) -> dict[str, Any]:
        parts = super().pipeline_parts(source, options)
        return {**parts, 'transformer': self.weightless_transformer()}

    def embed(self, pipeline: Any, prompt: str) -> dict[str, Tensor]:
        embeds, _, _, _, _, layers, _ = pipeline.encode_prompt(
            prompt, device=torch.device('cpu'), guidance_scale=1.0
        )
        return {'prompt_embeds': embeds, 'layers': torch.stack(layers, dim=1)}

    def run(
        self,
        transformer: nn.Module,
        latent: Tensor,
        model_time: Tensor,
        condition: Mapping[str, Tensor],
    ) -> None:
        embeds = condition['prompt_embeds']
        layers = list(condition['layers'].unbind(1))
        # The last block reads the last layer. Where there are more blocks, several of them do.
        layers = layers[-self.num_blocks :]
        layers += layers[-1:] * (self.num_blocks - len(layers))
        projections = cast(nn.ModuleList, transformer.caption_projection)
        transformer(
            latent.flatten(2).transpose(1, 2),
            encoder_hidden_states=embeds,
            text_encoder_layers=layers[: len(projections)],
            timestep=model_time.to(latent.dtype),
            img_ids=position_ids(self.grid(latent), latent),
            txt_ids=torch.zeros(embeds.shape[1], 3, device=latent.device),
        )

    def tap(self, transformer: nn.Module, index: int, feature: str) -> Tap:
        block = self.block(transformer, index)
        if index < self.stack_lengths[0]:
            # (image, text) from the attention, but (text, image) from the block.
            taps = usual_taps(block, block.attn, whole_output, member(0), member(1), last_tokens)
        else:
            taps = usual_taps(block, block.attn, last_tokens)
        return taps[feature]
