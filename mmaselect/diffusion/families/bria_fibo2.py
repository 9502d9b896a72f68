# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Bria FIBO 2: Z-Image's blocks, with a prompt squeezed into gist tokens, and read in between."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mmaselect.diffusion.codec import Codec, Flux2Codec, UnpackedFlux2Codec
from mmaselect.diffusion.families.base import FEATURES, POST_FEATURES, Published, Tap
from mmaselect.diffusion.families.lookup import register_family
from mmaselect.diffusion.families.text import TextFamily
from mmaselect.diffusion.families.tokens import last_tokens, usual_taps
from mmaselect.diffusion.loading import PipelineSource

# By the defaults of the class.
_CONFIG = {
    'in_channels': 32,
    'patch_size': 2,
    'dim': 3584,
    'n_layers': 44,
    'n_refiner_layers': 2,
    'n_heads': 28,
    'cap_feat_dim': 7680,
    'injection_layer_ids': (6, 14, 22, 30, 38),
}


@register_family
class BriaFibo2Family(TextFamily):
    """``BriaFibo2Transformer2DModel``: ``briaai/Fibo-2.0-dev``.

    Gist tokens of the text come first in the sequence. Counted are the main blocks; the refiner of
    the noise and the layers that make the gist run before them. Features are those of
    ``attention``: some blocks hold a second one, ``cross_attention``, to the text.

    A caption in JSON is put in the form that the model was trained with, as the pipeline does it.
    What text it asks for is not drawn for the language model (``render_text_images=False``).
    """

    transformer_class = 'BriaFibo2Transformer2DModel'
    title = 'Bria FIBO 2'
    pipeline_class = 'BriaFibo2Pipeline'
    min_diffusers = '0.42'
    stacks = (('n_layers', 'layers'),)
    features = FEATURES + POST_FEATURES
    published = (
        Published('briaai/Fibo-2.0-dev', _CONFIG, 16, 'flow, shift by size', 'see its page'),
    )

    @property
    def width(self) -> int:
        return int(self.config['dim'])

    def check_grid(self, grid: tuple[int, int], stride: int) -> None:
        _, *limits = self.config['axes_lens']
        if any(side > limit for side, limit in zip(grid, limits, strict=True)):
            raise ValueError(
                f'{self.title} has positions for {limits[0]}x{limits[1]} tokens, and this image '
                f'makes {grid[0]}x{grid[1]}: resize or crop it to at most '
                f'{limits[0] * stride}x{limits[1] * stride} pixels'
            )

    def codec(self, source: PipelineSource, dtype: torch.dtype) -> Codec:
        codec = super().codec(source, dtype)
        return UnpackedFlux2Codec(codec.vae) if isinstance(codec, Flux2Codec) else codec

    def embed(self, pipeline: Any, prompt: str) -> dict[str, Tensor]:
        caption, _ = pipeline._parse_prompt(prompt)
        if not isinstance(caption, str):
            prompt = json.dumps(caption or {}, separators=(',', ':'), ensure_ascii=False)
        states, _ = pipeline.encode_prompt(prompt, device=torch.device('cpu'))
        return {'encoder_hidden_states': states}

    def run(
        self,
        transformer: nn.Module,
        latent: Tensor,
        model_time: Tensor,
        condition: Mapping[str, Tensor],
    ) -> None:
        transformer(latent, timestep=model_time / 1000, **condition)

    def tap(self, transformer: nn.Module, index: int, feature: str) -> Tap:
        block = self.block(transformer, index)
        return usual_taps(block, block.attention, last_tokens)[feature]
