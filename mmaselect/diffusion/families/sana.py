# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Sana (arXiv 2410.10629): linear self-attention, no positions, a VAE with a stride of 32."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

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
from mmaselect.diffusion.families.tokens import usual_taps
from mmaselect.diffusion.single_file import OriginalLayout

if TYPE_CHECKING:
    from diffusers import ModelMixin


_1600M = {
    'sample_size': 32,
    'patch_size': 1,
    'in_channels': 32,
    'out_channels': 32,
    'num_layers': 20,
    'num_attention_heads': 70,
    'attention_head_dim': 32,
    'num_cross_attention_heads': 20,
    'cross_attention_head_dim': 112,
    'cross_attention_dim': 2240,
    'caption_channels': 2304,
    'mlp_ratio': 2.5,
}
_600M = {
    'num_layers': 28,
    'num_attention_heads': 36,
    'num_cross_attention_heads': 16,
    'cross_attention_head_dim': 72,
    'cross_attention_dim': 1152,
}
_4800M = {**_1600M, 'num_layers': 60, 'qk_norm': 'rms_norm_across_heads'}


@register_family
class SanaFamily(TextFamily):
    """``SanaTransformer2DModel``: ``Efficient-Large-Model/Sana_600M_512px_diffusers``, ...

    Text enters by cross-attention only, so every token is an image token; positions come from the
    convolutions of the feed-forward layers, so any size works. Sana-Sprint, which is distilled to
    one or a few steps, has no forward process to noise an image with.

    Args:
        config: The transformer's config.

    Raises:
        ValueError: If it is that of a Sana-Sprint.
    """

    transformer_class = 'SanaTransformer2DModel'
    title = 'Sana'
    pipeline_class = 'SanaPipeline'
    original_layout = OriginalLayout('blocks')
    published = (
        Published(
            'Efficient-Large-Model/Sana_600M_1024px_diffusers',
            {**_1600M, **_600M},
            32,
            'flow, shift 3',
            'nscl-v2-custom',
        ),
        Published(
            'Efficient-Large-Model/Sana_1600M_1024px_diffusers',
            _1600M,
            32,
            'flow, shift 3',
            'nscl-v2-custom',
        ),
        Published(
            'Efficient-Large-Model/SANA1.5_4.8B_1024px_diffusers',
            _4800M,
            32,
            'flow, shift 3',
            'nscl-v2-custom',
        ),
    )

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        if config.get('guidance_embeds'):
            raise ValueError(
                'this is a Sana-Sprint (guidance_embeds=True), distilled on a trigonometric '
                'schedule that mmaselect does not know; use the Sana that it was distilled from'
            )

    @property
    def features(self) -> tuple[str, ...]:
        """Sana 1.5 has QK norm, the first Sana does not; neither has rotary embedding."""
        return FEATURES + POST_FEATURES if self.config.get('qk_norm') else FEATURES

    def embed(self, pipeline: Any, prompt: str) -> dict[str, Tensor]:
        # A prompt is preceded by a page of instructions, the empty one is not: as in __call__.
        call = inspect.signature(pipeline.__call__).parameters
        instruction = call['complex_human_instruction'].default if prompt else None
        states, mask, *_ = pipeline.encode_prompt(
            prompt,
            do_classifier_free_guidance=False,
            device=torch.device('cpu'),
            complex_human_instruction=instruction,
        )
        return {'encoder_hidden_states': states, 'encoder_attention_mask': mask}

    def run(
        self,
        transformer: ModelMixin,
        latent: Tensor,
        model_time: Tensor,
        condition: Mapping[str, Tensor],
    ) -> None:
        time = model_time * transformer.config.timestep_scale
        transformer(latent, timestep=time, **condition)

    def tap(self, transformer: nn.Module, index: int, feature: str) -> Tap:
        block = self.block(transformer, index)
        taps = usual_taps(block, block.attn1, whole_output)
        # Linear attention does without torch's attention product.
        taps['query_post'] = Tap(block.attn1.norm_q, whole_output)
        taps['key_post'] = Tap(block.attn1.norm_k, whole_output)
        return taps[feature]
