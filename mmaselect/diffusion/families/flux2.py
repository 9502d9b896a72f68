# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""FLUX.2: two-stream blocks, then single-stream blocks whose projections are one matrix.

Unlike FLUX.1's, latents come packed from the codec, and positions have four axes: (time, row,
column, place in the prompt). Noise levels follow the scheduler's config; the sampler's own shift,
fitted to its number of steps, is not a part of the training schedule.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
from mmaselect.diffusion.families.lookup import register_family
from mmaselect.diffusion.families.text import TextFamily
from mmaselect.diffusion.families.tokens import last_tokens, member, usual_taps
from mmaselect.diffusion.loading import PipelineSource
from mmaselect.diffusion.single_file import OriginalLayout

_DEV = {
    'patch_size': 1,
    'in_channels': 128,
    'out_channels': None,
    'num_layers': 8,
    'num_single_layers': 48,
    'attention_head_dim': 128,
    'num_attention_heads': 48,
    'joint_attention_dim': 15360,
    'timestep_guidance_channels': 256,
    'mlp_ratio': 3.0,
    'axes_dims_rope': [32, 32, 32, 32],
    'rope_theta': 2000,
    'eps': 1e-06,
    'guidance_embeds': True,
}
_KLEIN_4B = {
    **_DEV,
    'num_layers': 5,
    'num_single_layers': 20,
    'num_attention_heads': 24,
    'joint_attention_dim': 7680,
    'guidance_embeds': False,
}
_KLEIN_9B = {
    **_DEV,
    'num_layers': 8,
    'num_single_layers': 24,
    'num_attention_heads': 32,
    'joint_attention_dim': 12288,
    'guidance_embeds': False,
}


@register_family
class Flux2Family(TextFamily):
    """``Flux2Transformer2DModel``: FLUX.2-dev, FLUX.2-klein and -klein-base, 4B and 9B.

    Blocks are counted through both stacks, as FLUX.1's are. Option: ``guidance``, the scale that
    distilled guidance (dev) is told, 4.0 as in the pipeline; Klein has none and does not take it.
    """

    transformer_class = 'Flux2Transformer2DModel'
    title = 'FLUX.2'
    features = FEATURES + POST_FEATURES
    stacks = TWO_STACKS
    pipeline_class = 'Flux2Pipeline'
    # 0.36 has the class, but not without a guidance embedding, as Klein needs it.
    min_diffusers = '0.37'
    original_layout = OriginalLayout('double_blocks', 'single_blocks')
    published = (
        Published(
            'black-forest-labs/FLUX.2-dev',
            _DEV,
            16,
            'flow, shift by size',
            'flux-dev-non-commercial-license',
            gated=True,
        ),
        Published(
            'black-forest-labs/FLUX.2-klein-4B', _KLEIN_4B, 16, 'flow, shift by size', 'apache-2.0'
        ),
        Published(
            'black-forest-labs/FLUX.2-klein-9B',
            _KLEIN_9B,
            16,
            'flow, shift by size',
            'flux-non-commercial-license',
            gated=True,
        ),
    )

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        self.has_guidance = bool(config.get('guidance_embeds', True))

    @property
    def condition_options(self) -> Mapping[str, Any]:
        return {'guidance': 4.0} if self.has_guidance else {}

    def pipeline_name(self, source: PipelineSource) -> str:
        # Klein embeds its prompts with another encoder, and only the index tells.
        name = str(source.index().get('_class_name'))
        return 'Flux2KleinPipeline' if name.startswith('Flux2Klein') else self.pipeline_class

    def embed(self, pipeline: Any, prompt: str, **options: Any) -> dict[str, Tensor]:
        embeds, _ = pipeline.encode_prompt(prompt, device='cpu')
        condition = {'prompt_embeds': embeds}
        if self.has_guidance:
            condition['guidance'] = torch.tensor([options['guidance']])
        return condition

    def run(
        self,
        transformer: nn.Module,
        latent: Tensor,
        model_time: Tensor,
        condition: Mapping[str, Tensor],
    ) -> None:
        embeds = condition['prompt_embeds']
        rows, columns = (torch.arange(side, device=latent.device) for side in self.grid(latent))
        places = torch.arange(embeds.shape[1], device=latent.device)
        zero = places.new_zeros(1)
        transformer(
            latent.flatten(2).transpose(1, 2),
            timestep=model_time.to(latent.dtype) / 1000,
            guidance=condition.get('guidance'),
            encoder_hidden_states=embeds,
            txt_ids=torch.cartesian_prod(zero, zero, zero, places),
            img_ids=torch.cartesian_prod(zero, rows, columns, zero),
        )

    def tap(self, transformer: nn.Module, index: int, feature: str) -> Tap:
        block = self.block(transformer, index)
        attn = block.attn
        if index < self.stack_lengths[0]:
            # (image, text) from the attention, but (text, image) from the block.
            taps = usual_taps(block, attn, whole_output, member(0), member(1), last_tokens)
            return taps[feature]
        if feature in POST_FEATURES:
            return Tap(attn, last_tokens, operand=feature.removesuffix('_post'))
        if feature == 'output':
            return Tap(block, last_tokens)
        if feature == 'attention':
            # Before its projection, as in FLUX.1: here that one adds the feed-forward part, too.
            return Tap(attn, last_tokens, operand='product')
        # One projection gives Q, K, V and the input of the feed-forward part, side by side.
        start = ('query', 'key', 'value').index(feature) * self.width
        return Tap(
            attn.to_qkv_mlp_proj,
            lambda output, grid: last_tokens(output, grid)[..., start : start + self.width],
        )
