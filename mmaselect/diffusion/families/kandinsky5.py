# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Kandinsky 5.0 (arXiv 2511.14993), text to image: clips of one frame, and FLUX.1's VAE."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mmaselect.diffusion.codec import Codec, KLCodec
from mmaselect.diffusion.families.base import Published, Tap, whole_output
from mmaselect.diffusion.families.kandinsky import KandinskyFamily
from mmaselect.diffusion.families.lookup import register_family
from mmaselect.diffusion.families.tokens import usual_taps
from mmaselect.diffusion.loading import PipelineSource

# As its authors' repository has it.
_LITE = {
    'in_visual_dim': 16,
    'out_visual_dim': 16,
    'time_dim': 512,
    'model_dim': 2560,
    'ff_dim': 10240,
    'num_text_blocks': 2,
    'num_visual_blocks': 50,
    'axes_dims': (32, 48, 48),
}


@register_family
class Kandinsky5Family(KandinskyFamily):
    """``Kandinsky5Transformer3DModel``: ``kandinskylab/Kandinsky-5.0-T2I-Lite-sft-Diffusers``, ...

    Blocks are those of the image, into which text enters by cross-attention, so every token is an
    image token; the blocks of the text alone run before them and are not counted.

    Args:
        config: The transformer's config.

    Raises:
        ValueError: If it is that of an editing or of a video model.
    """

    transformer_class = 'Kandinsky5Transformer3DModel'
    title = 'Kandinsky 5'
    pipeline_class = 'Kandinsky5T2IPipeline'
    min_diffusers = '0.36'
    waits_in = 'transformer_kandinsky.py: keeps the frequencies of the time on the CPU'
    published = (
        Published(
            'kandinskylab/Kandinsky-5.0-T2I-Lite-sft-Diffusers', _LITE, 16, 'flow, shift 5', 'mit'
        ),
    )

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        if config.get('visual_cond'):
            raise ValueError(
                f'this {self.title} takes an image or the first frame of a clip next to the noisy '
                f'one (visual_cond=True), as the editing (I2I) and video (T2V, I2V) models do, '
                f"and is not supported: use 'kandinskylab/Kandinsky-5.0-T2I-Lite-sft-Diffusers'"
            )

    def codec(self, source: PipelineSource, dtype: torch.dtype) -> Codec:
        codec = super().codec(source, dtype)
        if isinstance(codec, KLCodec):
            # The VAE has a shift, and the pipelines scale without it.
            codec.shift = 0.0
        return codec

    def embed(self, pipeline: Any, prompt: str) -> dict[str, Tensor]:
        states, pooled, _ = pipeline.encode_prompt(prompt, device=torch.device('cpu'))
        return {'encoder_hidden_states': states, 'pooled_projections': pooled}

    def run(
        self,
        transformer: nn.Module,
        latent: Tensor,
        model_time: Tensor,
        condition: Mapping[str, Tensor],
    ) -> None:
        states = condition['encoder_hidden_states']
        transformer(
            # (B, frames, rows, columns, C)
            latent.permute(0, 2, 3, 1).contiguous().unsqueeze(1),
            encoder_hidden_states=states,
            pooled_projections=condition['pooled_projections'],
            timestep=model_time.to(latent.dtype),
            visual_rope_pos=[
                torch.arange(size, device=latent.device) for size in (1, *self.grid(latent))
            ],
            text_rope_pos=torch.arange(states.shape[1], device=latent.device),
        )

    def tap(self, transformer: nn.Module, index: int, feature: str) -> Tap:
        block = self.block(transformer, index)
        return usual_taps(block, block.self_attention, whole_output, names=self.projections)[
            feature
        ]
