# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Kandinsky 6.0, text to video and sound: clips of one frame, without sound."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mmaselect.diffusion.families.base import Published, Tap, whole_output
from mmaselect.diffusion.families.kandinsky import KandinskyFamily
from mmaselect.diffusion.families.lookup import register_family
from mmaselect.diffusion.families.tokens import member, usual_taps
from mmaselect.diffusion.loading import PipelineSource
from mmaselect.diffusion.process import FlowMatchingProcess, ForwardProcess

# What only sound runs through, in each block.
_SOUND = (
    'audio_dec_block',
    'va_cross_attention',
    'av_cross_attention',
    'va_modulation',
    'av_modulation',
    'va_normalization',
    'av_normalization',
)


# As those who ported it have it.
_LITE = {
    'audio_freqs_scaling': 0.144,
    'axes_dims': (16, 24, 24),
    'axes_dims_a': (16, 24, 24),
    'ca_rope': True,
    'cross_gates': True,
    'ff_dim': 7168,
    'ff_dim_a': 3584,
    'fix_modulation': True,
    'in_audio_dim': 40,
    'model_dim': 1792,
    'model_dim_a': 896,
    'num_text_blocks': 2,
    'num_visual_blocks': 32,
    'out_audio_dim': 400,
    'out_visual_dim': 160,
    'text_token_padding': True,
    'time_dim': 512,
    'time_dim_a': 512,
    'visual_token_type_num_embeddings': 2,
}
_PRO = {
    **_LITE,
    'axes_dims': (32, 48, 48),
    'axes_dims_a': (32, 48, 48),
    'ff_dim': 16384,
    'ff_dim_a': 7168,
    'model_dim': 4096,
    'model_dim_a': 2048,
    'num_text_blocks': 4,
    'num_visual_blocks': 60,
    'out_audio_dim': 40,
    'out_visual_dim': 16,
    'time_dim': 1024,
    'time_dim_a': 1024,
}


@register_family
class Kandinsky6Family(KandinskyFamily):
    """``Kandinsky6Transformer3DModel``: ``kandinskylab/Kandinsky-6.0-Pro-5s-Diffusers``, ...

    The pipeline's call with ``num_frames=1`` and ``sample_audio=False``. The half of the model that
    makes sound is not loaded. Blocks are those of the image, into which text enters by
    cross-attention, so every token is an image token; the blocks of the text alone run before them
    and are not counted.
    """

    transformer_class = 'Kandinsky6Transformer3DModel'
    title = 'Kandinsky 6'
    pipeline_class = 'Kandinsky6TI2VAPipeline'
    min_diffusers = '0.42'
    published = (
        Published(
            'kandinskylab/Kandinsky-6.0-Pro-5s-Diffusers', _PRO, 16, 'flow, static shift', 'mit'
        ),
        Published(
            'kandinskylab/Kandinsky-6.0-Lite-distill-5s-Diffusers',
            _LITE,
            16,
            'flow, static shift',
            'mit',
        ),
    )

    def trim(self, transformer: nn.Module, num_blocks: int) -> None:
        transformer.audio_text_transformer_blocks = nn.ModuleList()
        for index in range(num_blocks):
            block = self.block(transformer, index)
            for name in _SOUND:
                setattr(block, name, None)

    def build_process(self, source: PipelineSource) -> ForwardProcess:
        config = source.config('scheduler')
        if config.get('_class_name') == 'PiflowScheduler':
            # Distilled checkpoints take larger steps along the same, statically shifted flow.
            return FlowMatchingProcess(config)
        return super().build_process(source)

    def pipeline_parts(self, source: PipelineSource, options: Mapping[str, Any]) -> dict[str, Any]:
        parts = super().pipeline_parts(source, options)
        return {**parts, 'audio_vae': None, 'vocoder': None}

    def embed(self, pipeline: Any, prompt: str) -> dict[str, Tensor]:
        states, pooled, mask, *_ = pipeline.encode_prompt(
            prompt, do_classifier_free_guidance=False, device=torch.device('cpu')
        )
        condition = {'encoder_hidden_states': states, 'pooled_projections': pooled}
        # There is none for a prompt that is not padded.
        return condition if mask is None else {**condition, 'encoder_attention_mask': mask}

    def run(
        self,
        transformer: nn.Module,
        latent: Tensor,
        model_time: Tensor,
        condition: Mapping[str, Tensor],
    ) -> None:
        # (B, frames, rows, columns, C)
        latent = latent.permute(0, 2, 3, 1).contiguous().unsqueeze(1)
        if self.config.get('visual_cond'):
            # No first frame is given: neither its latent nor its mask.
            latent = torch.cat(
                [latent, torch.zeros_like(latent), torch.zeros_like(latent[..., :1])], dim=-1
            )
        transformer(latent, timestep=model_time, **condition)

    def tap(self, transformer: nn.Module, index: int, feature: str) -> Tap:
        block = self.block(transformer, index)
        attention = block.video_dec_block.self_attention
        # A block returns (image, sound).
        return usual_taps(
            block,
            attention,
            whole_output,
            output=member(0),
            names=self.projections,
        )[feature]
