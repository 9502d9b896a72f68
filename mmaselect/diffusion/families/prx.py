# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""PRX (Photoroom): image tokens attend to themselves and to text that no block changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mmaselect.diffusion.families.base import FEATURES, POST_FEATURES, Published, Tap, whole_output
from mmaselect.diffusion.families.lookup import register_family
from mmaselect.diffusion.families.text import TextFamily, require_prompt_cleaners
from mmaselect.diffusion.families.tokens import last_tokens
from mmaselect.diffusion.loading import PipelineSource
from mmaselect.diffusion.process import FlowMatchingProcess, ForwardProcess, NoiseLevel

_PIXELS = 'PRXPixelPipeline'


class ScaledNoiseProcess(FlowMatchingProcess):
    """A flow whose noise has another standard deviation than 1.

    Args:
        config: Config of a flow-matching scheduler.
        noise_scale: That standard deviation.
    """

    def __init__(self, config: Mapping[str, Any], noise_scale: float) -> None:
        super().__init__(config)
        self.noise_scale = noise_scale

    def at(self, timestep: int, num_tokens: int | None = None) -> NoiseLevel:
        level = super().at(timestep, num_tokens)
        return replace(level, sigma=level.sigma * self.noise_scale)


# By the defaults of the class.
_CONFIG = {
    'in_channels': 16,
    'patch_size': 2,
    'context_in_dim': 2304,
    'hidden_size': 1792,
    'mlp_ratio': 3.5,
    'num_heads': 28,
    'depth': 16,
}
_PIXEL_SPACE = {
    **_CONFIG,
    'in_channels': 3,
    'patch_size': 16,
    'context_in_dim': 2048,
    'hidden_size': 3584,
    'depth': 24,
    'axes_dim': [64, 64],
    'bottleneck_size': 768,
    'resolution_embeds': True,
}


@register_family
class PRXFamily(TextFamily):
    """``PRXTransformer2DModel``: ``Photoroom/prx-512-t2i-sft``, ``Photoroom/prxpixel-t2i``, ...

    Blocks run over image tokens only; one projection gives their Q, K and V. Among the keys of the
    attention product the text's come first. PRXPixel works on pixels, and its noise has twice the
    usual standard deviation (``noise_scale`` of its pipeline).
    """

    transformer_class = 'PRXTransformer2DModel'
    title = 'PRX'
    pipeline_class = 'PRXPipeline'
    min_diffusers = '0.36'
    stacks = (('depth', 'blocks'),)
    features = FEATURES + POST_FEATURES
    published = (
        Published('Photoroom/prx-512-t2i-sft', _CONFIG, 16, 'flow, static shift', 'apache-2.0'),
        Published(
            'Photoroom/prxpixel-t2i', _PIXEL_SPACE, 16, 'flow, shift 3, noise x 2', 'see its page'
        ),
    )

    def pipeline_name(self, source: PipelineSource) -> str:
        return _PIXELS if source.index().get('_class_name') == _PIXELS else self.pipeline_class

    def build_process(self, source: PipelineSource) -> ForwardProcess:
        pipeline = source.pipeline
        if self.pipeline_name(pipeline) != _PIXELS:
            return super().build_process(source)
        return ScaledNoiseProcess(
            source.config('scheduler'), float(pipeline.index().get('noise_scale', 2.0))
        )

    @property
    def width(self) -> int:
        return int(self.config['hidden_size'])

    def embed(self, pipeline: Any, prompt: str) -> dict[str, Tensor]:
        if type(pipeline).__name__ == _PIXELS:
            require_prompt_cleaners('PRXPixel', ('ftfy',))
        states, mask, *_ = pipeline.encode_prompt(
            prompt, device=torch.device('cpu'), do_classifier_free_guidance=False
        )
        return {'encoder_hidden_states': states, 'attention_mask': mask}

    def run(
        self,
        transformer: nn.Module,
        latent: Tensor,
        model_time: Tensor,
        condition: Mapping[str, Tensor],
    ) -> None:
        # One time for the batch, as in the pipeline: products with more rows are rounded otherwise.
        transformer(latent, timestep=model_time[:1] / 1000, **condition)

    def tap(self, transformer: nn.Module, index: int, feature: str) -> Tap:
        block = self.block(transformer, index)
        attention = block.attention
        if feature in ('query', 'key', 'value'):
            start = ('query', 'key', 'value').index(feature) * self.width
            return Tap(
                attention.img_qkv_proj,
                lambda output, grid: output[..., start : start + self.width],
            )
        return {
            'attention': Tap(attention, whole_output),
            'output': Tap(block, whole_output),
            'query_post': Tap(attention, whole_output, operand='query'),
            'key_post': Tap(attention, last_tokens, operand='key'),
        }[feature]
