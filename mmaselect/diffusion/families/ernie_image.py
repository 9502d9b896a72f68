# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""ERNIE-Image (Baidu): one sequence of image and text, one modulation for all blocks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mmaselect.diffusion.codec import Codec, Flux2Codec
from mmaselect.diffusion.families.base import FEATURES, POST_FEATURES, Published, Tap
from mmaselect.diffusion.families.lookup import register_family
from mmaselect.diffusion.families.text import TextFamily
from mmaselect.diffusion.families.tokens import first_tokens, usual_taps
from mmaselect.diffusion.loading import PipelineSource

# What its latents were normalized with, whatever the VAE's config says: as the pipeline has it.
_EPS = 1e-5


_CONFIG = {
    'ffn_hidden_size': 12288,
    'hidden_size': 4096,
    'num_attention_heads': 32,
    'num_layers': 36,
    'text_in_dim': 3072,
}


@register_family
class ErnieImageFamily(TextFamily):
    """``ErnieImageTransformer2DModel``: ``baidu/ERNIE-Image``, ``baidu/ERNIE-Image-Turbo``.

    The image comes first in the sequence, and latents come packed from the codec, as FLUX.2's. A
    prompt is taken as it is: that the pipeline by default lets a language model rewrite it first is
    no part of the condition.
    """

    transformer_class = 'ErnieImageTransformer2DModel'
    title = 'ERNIE-Image'
    pipeline_class = 'ErnieImagePipeline'
    min_diffusers = '0.38'
    stacks = (('num_layers', 'layers'),)
    features = FEATURES + POST_FEATURES
    published = (
        Published('baidu/ERNIE-Image', _CONFIG, 16, 'flow, shift 4', 'apache-2.0'),
        Published('baidu/ERNIE-Image-Turbo', _CONFIG, 16, 'flow, shift 4', 'apache-2.0'),
    )

    @property
    def width(self) -> int:
        return int(self.config['hidden_size'])

    def codec(self, source: PipelineSource, dtype: torch.dtype) -> Codec:
        codec = super().codec(source, dtype)
        if isinstance(codec, Flux2Codec):
            codec.eps = _EPS
        return codec

    def pipeline_parts(self, source: PipelineSource, options: Mapping[str, Any]) -> dict[str, Any]:
        # Only the rewriting of prompts needs them.
        parts = super().pipeline_parts(source, options)
        return {**parts, 'pe': None, 'pe_tokenizer': None}

    def embed(self, pipeline: Any, prompt: str) -> dict[str, Tensor]:
        (states,) = pipeline.encode_prompt(prompt, torch.device('cpu'))
        return {'encoder_hidden_states': states.unsqueeze(0)}

    def run(
        self,
        transformer: nn.Module,
        latent: Tensor,
        model_time: Tensor,
        condition: Mapping[str, Tensor],
    ) -> None:
        states = condition['encoder_hidden_states']
        transformer(
            latent,
            timestep=model_time.to(latent.dtype),
            text_bth=states,
            text_lens=torch.full((len(states),), states.shape[1], device=latent.device),
        )

    def tap(self, transformer: nn.Module, index: int, feature: str) -> Tap:
        block = self.block(transformer, index)
        if feature == 'output':
            # Between blocks the sequence leads, and the batch comes second.
            return Tap(block, lambda output, grid: first_tokens(output.transpose(0, 1), grid))
        return usual_taps(block, block.self_attention, first_tokens)[feature]
