# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Bria 3.2: FLUX.1's blocks without a pooled embedding; the image's time is told as it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import diffusers
import torch
from torch import Tensor, nn

from mmaselect.diffusion.codec import Codec, KLCodec
from mmaselect.diffusion.families.base import Published
from mmaselect.diffusion.families.flux import FluxFamily, pack, position_ids
from mmaselect.diffusion.families.lookup import register_family
from mmaselect.diffusion.loading import PipelineSource

_CONFIG = {
    'in_channels': 16,
    'num_layers': 8,
    'num_single_layers': 28,
    'attention_head_dim': 96,
    'num_attention_heads': 24,
    'joint_attention_dim': 4096,
    'axes_dims_rope': [0, 48, 48],
}


@register_family
class BriaFamily(FluxFamily):
    """``BriaTransformer2DModel``: ``briaai/BRIA-3.2``.

    Blocks are counted as FLUX.1's are. The VAE runs in float32 in every ``dtype`` where its config
    has no ``shift_factor``, as in the pipeline.

    Option: ``max_sequence_length``, tokens that T5's are padded to with zeros.
    """

    transformer_class = 'BriaTransformer2DModel'
    title = 'Bria 3.2'
    pipeline_class = 'BriaPipeline'
    min_diffusers = '0.36'
    condition_options: ClassVar[dict[str, Any]] = {'max_sequence_length': 128}
    original_layout = None
    published = (
        Published(
            'briaai/BRIA-3.2', _CONFIG, 16, 'flow, shift by size', 'cc-by-nc-4.0', gated=True
        ),
    )

    def codec(self, source: PipelineSource, dtype: torch.dtype) -> Codec:
        codec = super().codec(source, dtype)
        if isinstance(codec, KLCodec) and codec.vae.config.get('shift_factor') is None:
            codec.float()
        return codec

    def pipeline_parts(self, source: PipelineSource, options: Mapping[str, Any]) -> dict[str, Any]:
        # Its constructor looks at the VAE, and encode_prompt at the transformer's dtype.
        with torch.device('meta'):
            vae = diffusers.AutoencoderKL(shift_factor=0.0)
        parts = super().pipeline_parts(source, options)
        return {**parts, 'vae': vae, 'transformer': self.weightless_transformer()}

    def embed(self, pipeline: Any, prompt: str, **options: Any) -> dict[str, Tensor]:
        embeds, *_ = pipeline.encode_prompt(
            prompt,
            device=torch.device('cpu'),
            do_classifier_free_guidance=False,
            max_sequence_length=options['max_sequence_length'],
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
        transformer(
            pack(latent),
            encoder_hidden_states=embeds,
            timestep=model_time,
            img_ids=position_ids(self.grid(latent), latent),
            txt_ids=torch.zeros(embeds.shape[1], 3, device=latent.device),
        )
