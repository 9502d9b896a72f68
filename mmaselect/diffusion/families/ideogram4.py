# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Ideogram 4: one sequence of text and image, and many layers of a language model as the text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mmaselect.diffusion.codec import Codec, Flux2Codec
from mmaselect.diffusion.families.base import FEATURES, POST_FEATURES, Published, Tap
from mmaselect.diffusion.families.lookup import register_family
from mmaselect.diffusion.families.text import TextFamily
from mmaselect.diffusion.families.tokens import last_tokens, usual_taps
from mmaselect.diffusion.loading import PipelineSource

# What the class calls tokens of the image and of the text, and where the image's positions begin.
_IMAGE, _TEXT = 2, 3
_OFFSET = 65536


# By the defaults of the class.


@register_family
class Ideogram4Family(TextFamily):
    """``Ideogram4Transformer2DModel``: ``ideogram-ai/ideogram-4-nf4-diffusers``.

    Text comes first in the sequence. It is not padded, which is ``max_sequence_length`` of the
    pipeline's call at the length of the prompt: padding is masked from all else, and costs hundreds
    of megabytes. Noise levels follow the scheduler's config; those that the sampler spends its
    steps at are not part of the training schedule. The second transformer, which makes images
    without any text for guidance, is not read: the empty prompt is one to the first.
    """

    transformer_class = 'Ideogram4Transformer2DModel'
    title = 'Ideogram 4'
    pipeline_class = 'Ideogram4Pipeline'
    min_diffusers = '0.39'
    features = FEATURES + POST_FEATURES
    stacks = (('num_layers', 'layers'),)
    published = (
        Published(
            'ideogram-ai/ideogram-4-nf4-diffusers',
            {'num_layers': 34},
            16,
            'flow, static shift',
            'ideogram-non-commercial',
            gated=True,
        ),
    )

    @property
    def patch_size(self) -> int:
        return 1  # packed by the codec

    def codec(self, source: PipelineSource, dtype: torch.dtype) -> Codec:
        codec = super().codec(source, dtype)
        if isinstance(codec, Flux2Codec):
            codec.pixel_first = True
        return codec

    def pipeline_parts(self, source: PipelineSource, options: Mapping[str, Any]) -> dict[str, Any]:
        parts = super().pipeline_parts(source, options)
        return {**parts, 'unconditional_transformer': None, 'prompt_enhancer_head': None}

    def embed(self, pipeline: Any, prompt: str) -> dict[str, Tensor]:
        messages = [{'role': 'user', 'content': [{'type': 'text', 'text': prompt}]}]
        text = pipeline.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=False
        )
        length = len(pipeline.tokenizer(text, add_special_tokens=False)['input_ids'])
        states, *_ = pipeline.encode_prompt(
            prompt, grid_h=1, grid_w=1, max_sequence_length=length, device=torch.device('cpu')
        )
        return {'prompt_embeds': states[:, :length]}

    def run(
        self,
        transformer: nn.Module,
        latent: Tensor,
        model_time: Tensor,
        condition: Mapping[str, Tensor],
    ) -> None:
        embeds = condition['prompt_embeds']
        batch, length, channels = embeds.shape
        tokens = latent.flatten(2).transpose(1, 2)
        image = tokens.shape[1]
        rows, columns = (torch.arange(side, device=latent.device) for side in self.grid(latent))
        places = torch.arange(length, device=latent.device)
        # (time, row, column)
        positions = torch.cat(
            [
                places[:, None].expand(length, 3),
                torch.cartesian_prod(rows.new_zeros(1), rows, columns) + _OFFSET,
            ]
        )
        kinds = torch.cat([places.new_full((length,), _TEXT), places.new_full((image,), _IMAGE)])
        transformer(
            torch.cat([tokens.new_zeros(batch, length, tokens.shape[2]), tokens], dim=1),
            # To this model 0 is noise and 1 is the image.
            timestep=(1.0 - model_time / 1000).to(latent.dtype),
            encoder_hidden_states=torch.cat(
                [embeds, embeds.new_zeros(batch, image, channels)], dim=1
            ),
            position_ids=positions.expand(batch, -1, -1),
            segment_ids=torch.ones_like(kinds).expand(batch, -1),
            indicator=kinds.expand(batch, -1),
        )

    def tap(self, transformer: nn.Module, index: int, feature: str) -> Tap:
        block = self.block(transformer, index)
        return usual_taps(block, block.attention, last_tokens)[feature]
