# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Hunyuan-DiT (arXiv 2405.08748): DiT with cross-attention, rotary positions and long skips."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from diffusers.models.embeddings import get_2d_rotary_pos_embed
from torch import Tensor, nn

from mmaselect.diffusion.families.base import (
    FEATURES,
    POST_FEATURES,
    Published,
    Tap,
    whole_output,
)
from mmaselect.diffusion.families.lookup import register_family
from mmaselect.diffusion.families.pixels import image_size, pixel_condition
from mmaselect.diffusion.families.text import TextFamily
from mmaselect.diffusion.families.tokens import usual_taps
from mmaselect.diffusion.loading import PipelineSource

if TYPE_CHECKING:
    from diffusers import ModelMixin

# Lengths of the two prompts, and the image size that is named as the original, in its pipeline.
_TOKENS = {0: 77, 1: 256}
_ORIGINAL_SIDE = 1024
# Its rotary positions are stretched to the grid of a 512-pixel image.
_BASE_SIZE = 512 // 8


_XL = {
    'sample_size': 128,
    'patch_size': 2,
    'in_channels': 4,
    'num_layers': 40,
    'num_attention_heads': 16,
    'attention_head_dim': 88,
    'hidden_size': 1408,
    'mlp_ratio': 4.3637,
    'activation_fn': 'gelu-approximate',
    'cross_attention_dim': 1024,
    'cross_attention_dim_t5': 2048,
    'pooled_projection_dim': 1024,
    'text_len': 77,
    'text_len_t5': 256,
}


@register_family
class HunyuanDiTFamily(TextFamily):
    """``HunyuanDiT2DModel``: ``Tencent-Hunyuan/HunyuanDiT-v1.2-Diffusers``, ...

    Text enters by cross-attention only, so every token is an image token. Block i of the second
    half takes the output of block L - 1 - i in as well; which blocks do depends on the depth L, so
    the model keeps its published depth in its config and loses superfluous blocks from the list.
    """

    transformer_class = 'HunyuanDiT2DModel'
    title = 'Hunyuan-DiT'
    pipeline_class = 'HunyuanDiTPipeline'
    features = FEATURES + POST_FEATURES
    stacks = (('num_layers', 'blocks'),)
    published = (
        Published(
            'Tencent-Hunyuan/HunyuanDiT-v1.1-Diffusers',
            _XL,
            16,
            'DDPM, scaled linear',
            'tencent-hunyuan-community',
        ),
        Published(
            'Tencent-Hunyuan/HunyuanDiT-v1.2-Diffusers',
            {**_XL, 'use_style_cond_and_image_meta_size': False},
            16,
            'DDPM, scaled linear',
            'tencent-hunyuan-community',
        ),
    )

    def build_overrides(self, num_blocks: int) -> dict[str, Any]:
        return {}

    def trim(self, transformer: ModelMixin, num_blocks: int) -> None:
        transformer.blocks = transformer.blocks[:num_blocks]

    def pipeline_parts(self, source: PipelineSource, options: Mapping[str, Any]) -> dict[str, Any]:
        # No image is made here, so there is none to check.
        parts = super().pipeline_parts(source, options)
        return {**parts, 'requires_safety_checker': False}

    def embed(self, pipeline: Any, prompt: str) -> dict[str, Tensor]:
        bert, t5 = (
            pipeline.encode_prompt(
                prompt,
                do_classifier_free_guidance=False,
                device=torch.device('cpu'),
                max_sequence_length=length,
                text_encoder_index=encoder,
            )
            for encoder, length in _TOKENS.items()
        )
        return {
            'encoder_hidden_states': bert[0],
            'text_embedding_mask': bert[2],
            'encoder_hidden_states_t5': t5[0],
            'text_embedding_mask_t5': t5[2],
        }

    def prepare_condition(
        self, spec: Any, source: PipelineSource, dtype: torch.dtype
    ) -> dict[str, Tensor]:
        return {**super().prepare_condition(spec, source, dtype), **pixel_condition(source)}

    def rotary_embedding(self, grid: tuple[int, int], device: torch.device) -> tuple[Tensor, ...]:
        """Cosines and sines for a token grid (h, w), each (h * w, channels of a head)."""
        # Here and not above: the pipeline's module needs transformers, which a reader of class-
        # conditional models may lack.
        from diffusers.pipelines.hunyuandit.pipeline_hunyuandit import (
            get_resize_crop_region_for_grid,
        )

        return get_2d_rotary_pos_embed(
            int(self.config['attention_head_dim']),
            get_resize_crop_region_for_grid(grid, _BASE_SIZE // self.patch_size),
            grid,
            device=device,
            output_type='pt',
        )

    def run(
        self,
        transformer: nn.Module,
        latent: Tensor,
        model_time: Tensor,
        condition: Mapping[str, Tensor],
    ) -> None:
        batch = len(latent)
        size = image_size(latent, condition)
        transformer(
            latent,
            model_time.to(latent.dtype),
            encoder_hidden_states=condition['encoder_hidden_states'],
            text_embedding_mask=condition['text_embedding_mask'],
            encoder_hidden_states_t5=condition['encoder_hidden_states_t5'],
            text_embedding_mask_t5=condition['text_embedding_mask_t5'],
            # Original size, target size, top left corner of the crop.
            image_meta_size=torch.cat(
                [torch.full_like(size, _ORIGINAL_SIDE), size, torch.zeros_like(size)], dim=1
            ),
            style=torch.zeros(batch, dtype=torch.long, device=latent.device),
            image_rotary_emb=self.rotary_embedding(self.grid(latent), latent.device),
        )

    def tap(self, transformer: nn.Module, index: int, feature: str) -> Tap:
        block = self.block(transformer, index)
        return usual_taps(block, block.attn1, whole_output)[feature]
