# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""CogView4 (THUDM): one sequence of text and image with shared projections, rotary positions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mmaselect.diffusion.families.base import FEATURES, POST_FEATURES, Published, Tap
from mmaselect.diffusion.families.lookup import register_family
from mmaselect.diffusion.families.pixels import image_size, pixel_condition
from mmaselect.diffusion.families.text import TextFamily
from mmaselect.diffusion.families.tokens import last_tokens, member, usual_taps
from mmaselect.diffusion.loading import PipelineSource
from mmaselect.diffusion.process import FlowMatchingProcess, ForwardProcess, NoiseLevel


class CogView4Process(FlowMatchingProcess):
    """Its pipeline shifts by the square root of the number of tokens, and its time is not shifted.

    The noisy latent is made with the shifted sigma, while the transformer is told the timestep
    that this sigma came from.
    """

    def mu(self, num_tokens: int) -> float:
        return (num_tokens / self.base_tokens) ** 0.5 * self.max_shift + self.base_shift

    def at(self, timestep: int, num_tokens: int | None = None) -> NoiseLevel:
        level = super().at(timestep, num_tokens)
        return replace(level, model_time=float(level.timestep))


_CONFIG = {
    'sample_size': 128,
    'patch_size': 2,
    'in_channels': 16,
    'out_channels': 16,
    'num_layers': 28,
    'attention_head_dim': 128,
    'num_attention_heads': 32,
    'text_embed_dim': 4096,
    'time_embed_dim': 512,
    'condition_dim': 256,
    'pos_embed_max_size': 128,
    'rope_axes_dim': (256, 256),
}


@register_family
class CogView4Family(TextFamily):
    """``CogView4Transformer2DModel``: ``THUDM/CogView4-6B``.

    The text comes first in the sequence that Q, K and V are projected from. Rotary positions are
    stretched to any size.
    """

    transformer_class = 'CogView4Transformer2DModel'
    title = 'CogView4'
    pipeline_class = 'CogView4Pipeline'
    features = FEATURES + POST_FEATURES
    waits_in = 'models/embeddings.py: makes rotary positions on the CPU'
    published = (Published('THUDM/CogView4-6B', _CONFIG, 16, 'flow, shift by size', 'apache-2.0'),)

    def build_process(self, source: PipelineSource) -> ForwardProcess:
        return CogView4Process(source.config('scheduler'))

    def embed(self, pipeline: Any, prompt: str) -> dict[str, Tensor]:
        states, _ = pipeline.encode_prompt(
            prompt, do_classifier_free_guidance=False, device=torch.device('cpu')
        )
        return {'encoder_hidden_states': states}

    def prepare_condition(
        self, spec: Any, source: PipelineSource, dtype: torch.dtype
    ) -> dict[str, Tensor]:
        return {**super().prepare_condition(spec, source, dtype), **pixel_condition(source)}

    def run(
        self,
        transformer: nn.Module,
        latent: Tensor,
        model_time: Tensor,
        condition: Mapping[str, Tensor],
    ) -> None:
        size = image_size(latent, condition)
        transformer(
            latent,
            encoder_hidden_states=condition['encoder_hidden_states'],
            timestep=model_time,
            original_size=size,
            target_size=size,
            crop_coords=torch.zeros_like(size),
        )

    def tap(self, transformer: nn.Module, index: int, feature: str) -> Tap:
        block = self.block(transformer, index)
        # Block and attention return (image, text).
        return usual_taps(block, block.attn1, last_tokens, member(0))[feature]
