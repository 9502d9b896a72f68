# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Stable Diffusion 3 and 3.5 (MMDiT, arXiv 2403.03206): image and text tokens attend jointly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

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
from mmaselect.diffusion.families.tokens import first_tokens, member, usual_taps
from mmaselect.diffusion.loading import PipelineSource
from mmaselect.diffusion.single_file import OriginalLayout

if TYPE_CHECKING:
    from diffusers import ModelMixin


_MEDIUM = {
    'sample_size': 128,
    'patch_size': 2,
    'in_channels': 16,
    'out_channels': 16,
    'num_layers': 24,
    'attention_head_dim': 64,
    'num_attention_heads': 24,
    'joint_attention_dim': 4096,
    'caption_projection_dim': 1536,
    'pooled_projection_dim': 2048,
    'pos_embed_max_size': 192,
}
_MEDIUM_35 = {
    **_MEDIUM,
    'pos_embed_max_size': 384,
    'dual_attention_layers': tuple(range(13)),
    'qk_norm': 'rms_norm',
}
_LARGE_35 = {
    **_MEDIUM,
    'num_layers': 38,
    'num_attention_heads': 38,
    'caption_projection_dim': 2432,
    'qk_norm': 'rms_norm',
}


@register_family
class SD3Family(TextFamily):
    """``SD3Transformer2DModel``: SD3-medium, SD3.5-medium, SD3.5-large (and turbo).

    The first blocks of SD3.5-medium (``dual_attention_layers``) hold a second self-attention,
    ``attn2``, of the image alone. Features are those of ``attn``, the joint attention that every
    block has, so that blocks and models can be compared.

    The option ``t5=True`` embeds the prompt with T5-XXL as well. It is off by default: T5 is
    twice the size of SD3-medium, the model was trained to do without it, and the paper does.
    """

    transformer_class = 'SD3Transformer2DModel'
    title = 'Stable Diffusion 3'
    pipeline_class = 'StableDiffusion3Pipeline'
    condition_options: ClassVar[dict[str, Any]] = {'t5': False}
    original_layout = OriginalLayout('joint_blocks')
    published = (
        Published(
            'stabilityai/stable-diffusion-3-medium-diffusers',
            _MEDIUM,
            16,
            'flow, shift 3',
            'stabilityai-ai-community',
            gated=True,
        ),
        Published(
            'stabilityai/stable-diffusion-3.5-medium',
            _MEDIUM_35,
            16,
            'flow, shift 3',
            'stabilityai-ai-community',
            gated=True,
        ),
        Published(
            'stabilityai/stable-diffusion-3.5-large',
            _LARGE_35,
            16,
            'flow, shift 3',
            'stabilityai-ai-community',
            gated=True,
        ),
    )

    @property
    def features(self) -> tuple[str, ...]:
        # No rotary embedding; 3.5 has QK norm, 3 has not.
        return FEATURES + POST_FEATURES if self.config.get('qk_norm') else FEATURES

    @property
    def default_block(self) -> int:
        """The paper's: 9 of SD3-medium's 24, and the same relative depth elsewhere."""
        return round(9 / 24 * self.num_blocks)

    @property
    def published_block(self) -> int:
        return self.default_block

    def check_grid(self, grid: tuple[int, int], stride: int) -> None:
        limit = int(self.config['pos_embed_max_size'])
        if max(grid) > limit:
            height, width = (side * stride for side in grid)
            raise ValueError(
                f'a {height}x{width} image is too large for this {self.title}: its position table '
                f'holds {limit}x{limit} tokens, that is {limit * stride} pixels along a side. '
                f'Resize or crop the images, or read them in slides '
                f"(test_cfg=dict(mode='slide', ...) of a segmentor)"
            )

    def build_overrides(self, num_blocks: int) -> dict[str, Any]:
        # The class builds its last block differently (without a text branch to hand on), so one
        # more than needed is built, and `trim` drops it.
        return {'num_layers': min(num_blocks + 1, self.num_blocks)}

    def trim(self, transformer: ModelMixin, num_blocks: int) -> None:
        del transformer.transformer_blocks[num_blocks:]

    def pipeline_parts(self, source: PipelineSource, options: Mapping[str, Any]) -> dict[str, Any]:
        parts = super().pipeline_parts(source, options)
        if not options['t5']:
            # encode_prompt puts zeros in place of T5's tokens, and looks up their width here.
            parts |= {
                'text_encoder_3': None,
                'tokenizer_3': None,
                'transformer': self.weightless_transformer(),
            }
        return parts

    def embed(self, pipeline: Any, prompt: str, t5: bool = False) -> dict[str, Tensor]:
        embeds, _, pooled, _ = pipeline.encode_prompt(
            prompt, prompt, prompt, device='cpu', do_classifier_free_guidance=False
        )
        return {'prompt_embeds': embeds, 'pooled_prompt_embeds': pooled}

    def run(
        self,
        transformer: nn.Module,
        latent: Tensor,
        model_time: Tensor,
        condition: Mapping[str, Tensor],
    ) -> None:
        transformer(
            latent,
            encoder_hidden_states=condition['prompt_embeds'],
            pooled_projections=condition['pooled_prompt_embeds'],
            timestep=model_time,
        )

    def tap(self, transformer: nn.Module, index: int, feature: str) -> Tap:
        block = self.block(transformer, index)
        # (image, text) from the attention, but (text, image) from the block.
        taps = usual_taps(block, block.attn, whole_output, member(0), member(1), first_tokens)
        return taps[feature]
