# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""HunyuanImage 2.1 (Tencent): two-stream blocks, then single-stream ones; a stride of 32."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mmaselect.diffusion.families.base import FEATURES, POST_FEATURES, TWO_STACKS, Published, Tap
from mmaselect.diffusion.families.lookup import register_family
from mmaselect.diffusion.families.text import TextFamily
from mmaselect.diffusion.families.tokens import first_tokens, member, usual_taps
from mmaselect.diffusion.loading import PipelineSource

_CONFIG = {
    'in_channels': 64,
    'num_layers': 20,
    'num_single_layers': 40,
    'num_attention_heads': 28,
    'attention_head_dim': 128,
    'text_embed_dim': 3584,
    'text_embed_2_dim': 1472,
}


@register_family
class HunyuanImageFamily(TextFamily):
    """``HunyuanImageTransformer2DModel``: ``hunyuanvideo-community/HunyuanImage-2.1-Diffusers``.

    Blocks are counted through both stacks; the image comes first in the sequence. What a prompt has
    in quotation marks is embedded a second time, byte by byte.

    Args:
        config: The transformer's config.

    Raises:
        ValueError: If it is that of the distilled model or of the refiner.
    """

    transformer_class = 'HunyuanImageTransformer2DModel'
    title = 'HunyuanImage 2.1'
    pipeline_class = 'HunyuanImagePipeline'
    min_diffusers = '0.36'
    stacks = TWO_STACKS
    features = FEATURES + POST_FEATURES
    waits_in = 'transformer_hunyuanimage.py: sorts the tokens of a prompt by its mask'
    published = (
        Published(
            'hunyuanvideo-community/HunyuanImage-2.1-Diffusers',
            _CONFIG,
            32,
            'flow, shift 5',
            'tencent-hunyuan-community',
        ),
    )

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        use = "use 'hunyuanvideo-community/HunyuanImage-2.1-Diffusers'"
        if config.get('use_meanflow'):
            raise ValueError(
                f'this is the distilled {self.title} (use_meanflow=True), which is told where the '
                f'next step of a generation ends, and an image that is read has no next step: {use}'
            )
        if len(config['patch_size']) != 2:
            raise ValueError(
                f'this is the refiner of {self.title} (patch_size={config["patch_size"]}), which '
                f'takes a second image next to the noisy one: {use}'
            )

    @property
    def patch_size(self) -> int:
        return int(self.config['patch_size'][0])

    def pipeline_parts(self, source: PipelineSource, options: Mapping[str, Any]) -> dict[str, Any]:
        parts = super().pipeline_parts(source, options)
        return {**parts, 'guider': None, 'ocr_guider': None}

    def embed(self, pipeline: Any, prompt: str) -> dict[str, Tensor]:
        names = (
            'encoder_hidden_states',
            'encoder_attention_mask',
            'encoder_hidden_states_2',
            'encoder_attention_mask_2',
        )
        tensors = pipeline.encode_prompt(prompt, device=torch.device('cpu'))
        return dict(zip(names, tensors, strict=True))

    def run(
        self,
        transformer: nn.Module,
        latent: Tensor,
        model_time: Tensor,
        condition: Mapping[str, Tensor],
    ) -> None:
        transformer(latent, timestep=model_time.to(latent.dtype), **condition)

    def tap(self, transformer: nn.Module, index: int, feature: str) -> Tap:
        block = self.block(transformer, index)
        # Block and attention return (image, text), in both stacks.
        return usual_taps(block, block.attn, first_tokens, member(0), post=first_tokens)[feature]
