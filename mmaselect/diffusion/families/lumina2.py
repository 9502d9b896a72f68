# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Lumina-Image 2.0 (arXiv 2503.21758): text and image in one sequence, grouped heads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mmaselect.diffusion.families.base import FEATURES, POST_FEATURES, Published, Tap
from mmaselect.diffusion.families.lookup import register_family
from mmaselect.diffusion.families.text import TextFamily
from mmaselect.diffusion.families.tokens import last_tokens, usual_taps
from mmaselect.diffusion.loading import PipelineSource
from mmaselect.diffusion.single_file import OriginalLayout

_CONFIG = {
    'sample_size': 128,
    'patch_size': 2,
    'in_channels': 16,
    'hidden_size': 2304,
    'num_layers': 26,
    'num_refiner_layers': 2,
    'num_attention_heads': 24,
    'num_kv_heads': 8,
    'multiple_of': 256,
    'axes_dim_rope': (32, 32, 32),
    'axes_lens': (300, 512, 512),
    'cap_feat_dim': 2304,
}


@register_family
class Lumina2Family(TextFamily):
    """``Lumina2Transformer2DModel``: ``Alpha-VLLM/Lumina-Image-2.0``.

    Blocks are those of the joint sequence; the refiners before them (two for the text, two for the
    image) run, and are not counted. Keys and values have fewer heads than queries, so fewer
    channels; ``'key_post'`` is read after the heads were repeated.
    """

    transformer_class = 'Lumina2Transformer2DModel'
    title = 'Lumina 2'
    pipeline_class = 'Lumina2Pipeline'
    features = FEATURES + POST_FEATURES
    stacks = (('num_layers', 'layers'),)
    waits_in = 'transformer_lumina2.py: reads the lengths of prompts'
    original_layout = OriginalLayout('layers', width=2304)
    published = (
        Published('Alpha-VLLM/Lumina-Image-2.0', _CONFIG, 16, 'flow, shift 6', 'apache-2.0'),
    )

    @property
    def width(self) -> int:
        return int(self.config['hidden_size'])

    def channels(self, block: int, feature: str) -> int:
        if feature not in ('key', 'value'):
            return self.width
        head = self.width // int(self.config['num_attention_heads'])
        return head * int(self.config['num_kv_heads'])

    def check_grid(self, grid: tuple[int, int], stride: int) -> None:
        longest = tuple(self.config['axes_lens'][1:])
        if grid[0] > longest[0] or grid[1] > longest[1]:
            raise ValueError(
                f'{self.title} has rotary positions for {longest[0]}x{longest[1]} tokens, that is '
                f'images up to {longest[0] * stride}x{longest[1] * stride}; got '
                f'{grid[0]}x{grid[1]} tokens ({grid[0] * stride}x{grid[1] * stride}): resize or '
                f'crop the images'
            )

    def embed(self, pipeline: Any, prompt: str) -> dict[str, Tensor]:
        # A prompt gets the system prompt in front, the empty one of guidance does not.
        *conditional, states, mask = pipeline.encode_prompt(
            prompt, do_classifier_free_guidance=not prompt, device=torch.device('cpu')
        )
        if prompt:
            states, mask = conditional
        return {'encoder_hidden_states': states, 'encoder_attention_mask': mask}

    def prepare_condition(
        self, spec: Any, source: PipelineSource, dtype: torch.dtype
    ) -> dict[str, Tensor]:
        steps = int(source.config('scheduler').get('num_train_timesteps', 1000))
        return {
            **super().prepare_condition(spec, source, dtype),
            'num_train_timesteps': torch.tensor([steps]),
        }

    def run(
        self,
        transformer: nn.Module,
        latent: Tensor,
        model_time: Tensor,
        condition: Mapping[str, Tensor],
    ) -> None:
        transformer(
            latent,
            # To this model 0 is noise and 1 is the image.
            timestep=1 - model_time / condition['num_train_timesteps'],
            encoder_hidden_states=condition['encoder_hidden_states'],
            encoder_attention_mask=condition['encoder_attention_mask'],
        )

    def tap(self, transformer: nn.Module, index: int, feature: str) -> Tap:
        block = self.block(transformer, index)
        return usual_taps(block, block.attn, last_tokens)[feature]
