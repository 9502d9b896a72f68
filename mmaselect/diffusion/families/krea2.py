# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Krea 2: one sequence of text and image, grouped heads, gated attention, packed latents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mmaselect.diffusion.families.base import FEATURES, POST_FEATURES, Published, Tap
from mmaselect.diffusion.families.flux import pack, position_ids
from mmaselect.diffusion.families.lookup import register_family
from mmaselect.diffusion.families.text import TextFamily
from mmaselect.diffusion.families.tokens import last_tokens, usual_taps
from mmaselect.diffusion.loading import PipelineSource
from mmaselect.diffusion.process import FlowMatchingProcess, ForwardProcess
from mmaselect.diffusion.single_file import OriginalLayout


class DistilledKrea2Process(FlowMatchingProcess):
    """The distilled checkpoint is shifted alike at all sizes."""

    def mu(self, num_tokens: int) -> float:
        return 1.15


_CONFIG = {
    'in_channels': 64,
    'num_layers': 28,
    'attention_head_dim': 128,
    'num_attention_heads': 48,
    'num_key_value_heads': 12,
    'intermediate_size': 16384,
    'text_hidden_dim': 2560,
    'num_text_layers': 12,
    'text_num_attention_heads': 20,
    'text_num_key_value_heads': 20,
    'text_intermediate_size': 6912,
}


@register_family
class Krea2Family(TextFamily):
    """``Krea2Transformer2DModel``: ``krea/Krea-2-Raw``, ``krea/Krea-2-Turbo``.

    Text comes first in the sequence, and the blocks of the small network that fuses it are not
    counted. Keys and values have fewer heads than queries, so fewer channels; ``'key_post'`` is
    read after the heads were repeated.
    """

    transformer_class = 'Krea2Transformer2DModel'
    title = 'Krea 2'
    pipeline_class = 'Krea2Pipeline'
    min_diffusers = '0.39'
    features = FEATURES + POST_FEATURES
    original_layout = OriginalLayout('blocks')
    published = (
        Published(
            'krea/Krea-2-Raw', _CONFIG, 16, 'flow, shift by size', 'krea-2-community-license'
        ),
        Published('krea/Krea-2-Turbo', _CONFIG, 16, 'flow, shift 3.16', 'krea-2-community-license'),
    )

    @property
    def patch_size(self) -> int:
        return 2  # by packing, outside of the transformer

    @property
    def in_channels(self) -> int:
        return int(self.config['in_channels']) // self.patch_size**2

    def channels(self, block: int, feature: str) -> int:
        if feature not in ('key', 'value'):
            return self.width
        return int(self.config['attention_head_dim']) * int(self.config['num_key_value_heads'])

    def build_process(self, source: PipelineSource) -> ForwardProcess:
        if source.index().get('is_distilled'):
            return DistilledKrea2Process(source.config('scheduler'))
        return super().build_process(source)

    def embed(self, pipeline: Any, prompt: str) -> dict[str, Tensor]:
        states, mask = pipeline.encode_prompt(prompt, device=torch.device('cpu'))
        return {'encoder_hidden_states': states, 'encoder_attention_mask': mask}

    def run(
        self,
        transformer: nn.Module,
        latent: Tensor,
        model_time: Tensor,
        condition: Mapping[str, Tensor],
    ) -> None:
        states = condition['encoder_hidden_states']
        image = position_ids(self.grid(latent), latent.float())
        transformer(
            pack(latent),
            encoder_hidden_states=states,
            timestep=(model_time / 1000).to(latent.dtype),
            position_ids=torch.cat([image.new_zeros(states.shape[1], 3), image]),
            encoder_attention_mask=condition['encoder_attention_mask'],
        )

    def tap(self, transformer: nn.Module, index: int, feature: str) -> Tap:
        block = self.block(transformer, index)
        return usual_taps(block, block.attn, last_tokens)[feature]
