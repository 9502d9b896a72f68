# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Wan 2.1 and 2.2 (arXiv 2503.20314), text to video, with a single frame."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mmaselect.diffusion.families.base import FEATURES, POST_FEATURES, Published, Tap, whole_output
from mmaselect.diffusion.families.lookup import register_family
from mmaselect.diffusion.families.text import TextFamily
from mmaselect.diffusion.families.tokens import usual_taps
from mmaselect.diffusion.loading import PipelineSource
from mmaselect.diffusion.single_file import OriginalLayout

# Tokens that its call pads every prompt to.
_TEXT = 512


_13B = {'num_attention_heads': 12, 'ffn_dim': 8960, 'num_layers': 30}
_14B = {'num_attention_heads': 40, 'ffn_dim': 13824, 'num_layers': 40}
_5B = {
    'num_attention_heads': 24,
    'ffn_dim': 14336,
    'num_layers': 30,
    'in_channels': 48,
    'out_channels': 48,
}


@register_family
class WanFamily(TextFamily):
    """``WanTransformer3DModel``: ``Wan-AI/Wan2.1-T2V-1.3B-Diffusers``, ``Wan2.2-TI2V-5B``, ...

    An image is a clip of one frame. Text enters by cross-attention only, so every token is an image
    token.

    Args:
        config: The transformer's config.

    Raises:
        ValueError: If it is that of an image-to-video model.
    """

    transformer_class = 'WanTransformer3DModel'
    title = 'Wan'
    pipeline_class = 'WanPipeline'
    min_diffusers = '0.35'
    features = FEATURES + POST_FEATURES
    stacks = (('num_layers', 'blocks'),)
    original_layout = OriginalLayout('blocks')
    published = (
        Published('Wan-AI/Wan2.1-T2V-1.3B-Diffusers', _13B, 16, 'flow, shift 3', 'apache-2.0'),
        Published('Wan-AI/Wan2.1-T2V-14B-Diffusers', _14B, 16, 'flow, shift 3', 'apache-2.0'),
        Published('Wan-AI/Wan2.2-TI2V-5B-Diffusers', _5B, 32, 'flow, shift 5', 'apache-2.0'),
    )

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        outputs = config.get('out_channels') or config['in_channels']
        if (
            outputs != config['in_channels']
            or config.get('image_dim')
            or config.get('added_kv_proj_dim')
        ):
            raise ValueError(
                f'this {self.title} takes the first frame of the clip next to the noisy one '
                f'(in_channels={config["in_channels"]}, out_channels={outputs}, '
                f'image_dim={config.get("image_dim")}), as the image-to-video (I2V) and '
                f'first-and-last-frame (FLF2V) variants do, and is not supported: use '
                f"'Wan-AI/Wan2.1-T2V-1.3B-Diffusers'"
            )

    @property
    def patch_size(self) -> int:
        return int(self.config['patch_size'][1])

    def check_grid(self, grid: tuple[int, int], stride: int) -> None:
        limit = int(self.config['rope_max_seq_len'])
        self.refuse_beyond(limit, grid, stride, 'rotary positions')

    def embed(self, pipeline: Any, prompt: str) -> dict[str, Tensor]:
        embeds, _ = pipeline.encode_prompt(
            prompt,
            do_classifier_free_guidance=False,
            max_sequence_length=_TEXT,
            device=torch.device('cpu'),
        )
        return {'prompt_embeds': embeds}

    def prepare_condition(
        self, spec: Any, source: PipelineSource, dtype: torch.dtype
    ) -> dict[str, Tensor]:
        index = source.index()
        ratio = index.get('boundary_ratio')
        if ratio is not None:
            raise ValueError(
                f'pretrained={source.name!r} has two transformers, one for the noisier timesteps '
                f'and one for the others (boundary_ratio={ratio}), as Wan2.2-T2V-A14B, and '
                f"mmaselect reads one: use 'Wan-AI/Wan2.1-T2V-14B-Diffusers' or "
                f"'Wan-AI/Wan2.2-TI2V-5B-Diffusers'"
            )
        condition = super().prepare_condition(spec, source, dtype)
        if index.get('expand_timesteps'):
            condition['time_of_each_token'] = torch.ones(1)
        return condition

    def run(
        self,
        transformer: nn.Module,
        latent: Tensor,
        model_time: Tensor,
        condition: Mapping[str, Tensor],
    ) -> None:
        time = model_time
        if 'time_of_each_token' in condition:
            # Wan 2.2 TI2V is told a time for every token: frames that are given have none.
            rows, columns = self.grid(latent)
            time = time[:, None].expand(-1, rows * columns)
        transformer(
            latent.unsqueeze(2), timestep=time, encoder_hidden_states=condition['prompt_embeds']
        )

    def tap(self, transformer: nn.Module, index: int, feature: str) -> Tap:
        block = self.block(transformer, index)
        return usual_taps(block, block.attn1, whole_output)[feature]
