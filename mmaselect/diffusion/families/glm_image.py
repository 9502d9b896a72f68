# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""GLM-Image: CogView4's blocks behind tokens that a language model writes, which are left out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mmaselect.diffusion.codec import Codec, KLCodec, StandardizedCodec
from mmaselect.diffusion.families.base import Published
from mmaselect.diffusion.families.cogview4 import CogView4Family
from mmaselect.diffusion.families.lookup import register_family
from mmaselect.diffusion.families.pixels import image_size
from mmaselect.diffusion.loading import PipelineSource

# As those who ported it have it.
_CONFIG = {'num_layers': 30, 'num_attention_heads': 32, 'attention_head_dim': 128}


@register_family
class GlmImageFamily(CogView4Family):
    """``GlmImageTransformer2DModel``: ``zai-org/GLM-Image``.

    To this transformer a prompt is a grid of tokens, drawn at random by a language model for each
    image size, and the letters in its quotation marks. Its pipeline's guidance has the empty one:
    no letters, and all of these tokens dropped. That is the one condition there is here.
    """

    transformer_class = 'GlmImageTransformer2DModel'
    title = 'GLM-Image'
    pipeline_class = 'GlmImagePipeline'
    min_diffusers = '0.37'
    waits_in = 'transformer_glm_image.py: drops prior tokens by a mask'
    published = (Published('zai-org/GLM-Image', _CONFIG, 16, 'flow, shift by size', 'mit'),)

    def codec(self, source: PipelineSource, dtype: torch.dtype) -> Codec:
        codec = super().codec(source, dtype)
        return StandardizedCodec(codec.vae) if type(codec) is KLCodec else codec

    def pipeline_parts(self, source: PipelineSource, options: Mapping[str, Any]) -> dict[str, Any]:
        parts = super().pipeline_parts(source, options)
        return {**parts, 'vision_language_encoder': None, 'processor': None}

    def prepare_condition(
        self, spec: Any, source: PipelineSource, dtype: torch.dtype
    ) -> dict[str, Tensor]:
        prompt, _ = self.parse_condition(spec)
        if prompt:
            raise ValueError(
                f'condition {prompt!r} does not fit {self.title}: a language model draws tokens '
                f'for a prompt, at random and for one image size, and none belong to the images '
                f'that are read here. Leave condition out, for the empty prompt'
            )
        return super().prepare_condition(spec, source, dtype)

    def run(
        self,
        transformer: nn.Module,
        latent: Tensor,
        model_time: Tensor,
        condition: Mapping[str, Tensor],
    ) -> None:
        size = image_size(latent, condition)
        rows, columns = self.grid(latent)
        dropped = torch.ones(len(latent), rows * columns, dtype=torch.bool, device=latent.device)
        transformer(
            latent,
            encoder_hidden_states=condition['encoder_hidden_states'],
            prior_token_id=torch.zeros_like(dropped, dtype=torch.long),
            prior_token_drop=dropped,
            # Its pipeline counts from 1 to T, and tells one less.
            timestep=(model_time - 1).clamp(min=0),
            target_size=size,
            crop_coords=torch.zeros_like(size),
        )
