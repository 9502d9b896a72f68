# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""LongCat-Image (arXiv 2512.07584): FLUX.1's blocks, with text from Qwen2.5-VL alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mmaselect.diffusion.families.base import Published
from mmaselect.diffusion.families.flux import FluxFamily, pack, position_ids
from mmaselect.diffusion.families.lookup import register_family
from mmaselect.diffusion.loading import PipelineSource

# Tokens that every prompt is padded to; the image's positions begin where the text's end.
_TEXT = 512


_CONFIG = {
    'in_channels': 64,
    'num_layers': 10,
    'num_single_layers': 20,
    'attention_head_dim': 128,
    'num_attention_heads': 24,
    'joint_attention_dim': 3584,
}


@register_family
class LongCatImageFamily(FluxFamily):
    """``LongCatImageTransformer2DModel``: ``meituan-longcat/LongCat-Image``.

    Blocks are counted as FLUX.1's are. A prompt is taken as it is: that the pipeline by default
    lets its language model rewrite it first is not a part of the condition.
    """

    transformer_class = 'LongCatImageTransformer2DModel'
    title = 'LongCat-Image'
    pipeline_class = 'LongCatImagePipeline'
    min_diffusers = '0.37'
    condition_options: ClassVar[dict[str, Any]] = {}
    original_layout = None
    published = (
        Published(
            'meituan-longcat/LongCat-Image', _CONFIG, 16, 'flow, shift by size', 'apache-2.0'
        ),
    )

    def pipeline_parts(self, source: PipelineSource, options: Mapping[str, Any]) -> dict[str, Any]:
        # Only the rewriting of prompts needs it.
        return {**super().pipeline_parts(source, options), 'text_processor': None}

    def embed(self, pipeline: Any, prompt: str, **options: Any) -> dict[str, Tensor]:
        embeds, _ = pipeline.encode_prompt(prompt)
        return {'prompt_embeds': embeds}

    def run(
        self,
        transformer: nn.Module,
        latent: Tensor,
        model_time: Tensor,
        condition: Mapping[str, Tensor],
    ) -> None:
        embeds = condition['prompt_embeds']
        # (kind, row, column); text lies on the diagonal.
        places = torch.arange(embeds.shape[1], dtype=torch.float32, device=latent.device)
        image = position_ids(self.grid(latent), latent.float())
        transformer(
            pack(latent),
            encoder_hidden_states=embeds,
            timestep=model_time.to(latent.dtype) / 1000,
            txt_ids=torch.stack([torch.zeros_like(places), places, places], dim=1),
            img_ids=torch.cat([image[:, :1] + 1, image[:, 1:] + _TEXT], dim=1),
        )
