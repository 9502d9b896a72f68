# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""OmniGen (arXiv 2409.11340): a language model that reads a prompt and denoises an image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmaselect.diffusion.families.base import FEATURES, POST_FEATURES, Published, Tap
from mmaselect.diffusion.families.lookup import register_family
from mmaselect.diffusion.families.text import TextFamily
from mmaselect.diffusion.families.tokens import last_tokens, usual_taps
from mmaselect.diffusion.loading import PipelineSource
from mmaselect.diffusion.process import FlowMatchingProcess, ForwardProcess

# Its scheduler has the times 0 to 1, without a number of steps between them.
_STEPS = 1000
# Pixels of the smallest image, which is one token.
_TOKEN = 16


class OmniGenProcess(FlowMatchingProcess):
    """To this model time 0 is noise and 1 is the image."""

    def model_time(self, sigma: np.floating[Any]) -> float:
        return float(np.float32(1) - np.float32(sigma))


# By the defaults of the class. Factors of rotary frequencies have no say in its size.
_CONFIG = {
    'num_layers': 32,
    'rope_scaling': {'short_factor': [1.0] * 48, 'long_factor': [1.0] * 48},
}


@register_family
class OmniGenFamily(TextFamily):
    """``OmniGenTransformer2DModel``: ``Shitao/OmniGen-v1-diffusers``.

    One sequence: the prompt, which the model embeds itself, the time, the image. The prompt stands
    in the pipeline's instruction to make an image; as in its call it is padded, behind a mask, to
    the length of the pipeline's own negative prompt.
    """

    transformer_class = 'OmniGenTransformer2DModel'
    title = 'OmniGen'
    pipeline_class = 'OmniGenPipeline'
    min_diffusers = '0.33'
    features = FEATURES + POST_FEATURES
    stacks = (('num_layers', 'layers'),)
    waits_in = 'transformer_omnigen.py: reads how long the sequence is'
    published = (Published('Shitao/OmniGen-v1-diffusers', _CONFIG, 16, 'flow', 'mit'),)

    @property
    def width(self) -> int:
        return int(self.config['hidden_size'])

    def check_grid(self, grid: tuple[int, int], stride: int) -> None:
        side = int(self.config['pos_embed_max_size'])
        self.refuse_beyond(side, grid, stride)

    def build_process(self, source: PipelineSource) -> ForwardProcess:
        return OmniGenProcess({**source.config('scheduler'), 'num_train_timesteps': _STEPS})

    def embed(self, pipeline: Any, prompt: str) -> dict[str, Tensor]:
        inputs = pipeline.multimodal_processor(
            [prompt], height=_TOKEN, width=_TOKEN, use_img_cfg=False
        )
        # Rows are the prompt and the negative one; places count the time and one image token, too.
        length = inputs['position_ids'][:1, -1] - 1
        return {'input_ids': inputs['input_ids'][:1], 'length': length}

    def run(
        self,
        transformer: nn.Module,
        latent: Tensor,
        model_time: Tensor,
        condition: Mapping[str, Tensor],
    ) -> None:
        ids = condition['input_ids']
        rows, columns = self.grid(latent)
        text = ids.shape[1]
        places = torch.arange(text + 1 + rows * columns, device=latent.device)
        padding = (text - condition['length'])[:, None]
        is_padding = places < padding
        is_image = (places > text)[None]
        # Text and time see what comes before them, the image sees all; padding is seen by itself
        # alone, and sees whatever there is.
        sees = (places[None, :] <= places[:, None])[None] | is_image[:, :, None]
        sees = sees & ~is_padding[:, None, :] | is_padding[:, :, None]
        transformer(
            latent,
            timestep=model_time,
            input_ids=ids,
            input_img_latents=[],
            input_image_sizes={},
            attention_mask=sees.float(),
            position_ids=(places - padding).clamp(min=0),
        )

    def tap(self, transformer: nn.Module, index: int, feature: str) -> Tap:
        block = self.block(transformer, index)
        return usual_taps(block, block.self_attn, last_tokens)[feature]
