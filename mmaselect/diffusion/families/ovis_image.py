# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Ovis-Image (arXiv 2511.22982): FLUX.1's blocks with SwiGLU, and text from Ovis 2.5's Qwen3."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mmaselect.diffusion.families.base import Published
from mmaselect.diffusion.families.flux import FluxFamily, pack, position_ids
from mmaselect.diffusion.families.lookup import register_family

_CONFIG = {
    'in_channels': 64,
    'out_channels': 64,
    'num_layers': 6,
    'num_single_layers': 27,
    'attention_head_dim': 128,
    'num_attention_heads': 24,
    'joint_attention_dim': 2048,
}


@register_family
class OvisImageFamily(FluxFamily):
    """``OvisImageTransformer2DModel``: ``AIDC-AI/Ovis-Image-7B``.

    Blocks are counted as FLUX.1's are.
    """

    transformer_class = 'OvisImageTransformer2DModel'
    title = 'Ovis-Image'
    pipeline_class = 'OvisImagePipeline'
    min_diffusers = '0.36'
    condition_options: ClassVar[dict[str, Any]] = {}
    original_layout = None
    published = (
        Published('AIDC-AI/Ovis-Image-7B', _CONFIG, 16, 'flow, shift by size', 'apache-2.0'),
    )

    def embed(self, pipeline: Any, prompt: str, **options: Any) -> dict[str, Tensor]:
        embeds, *_ = pipeline.encode_prompt(
            prompt, do_classifier_free_guidance=False, device=torch.device('cpu')
        )
        return {'prompt_embeds': embeds}

    def run(
        self,
        transformer: nn.Module,
        latent: Tensor,
        model_time: Tensor,
        condition: Mapping[str, Tensor],
    ) -> None:
        embeds = condition['prompt_embeds']
        # (0, row, column), and the text on the diagonal; as precise as the embeddings, as stock's.
        places = torch.arange(embeds.shape[1], device=latent.device)
        transformer(
            pack(latent),
            encoder_hidden_states=embeds,
            timestep=model_time.to(latent.dtype) / 1000,
            txt_ids=torch.stack([torch.zeros_like(places), places, places], dim=1).to(embeds.dtype),
            img_ids=position_ids(self.grid(latent), latent),
        )
