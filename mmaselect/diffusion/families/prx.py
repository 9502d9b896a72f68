# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""PRX (Photoroom): image tokens attend to themselves and to text that no block changes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mmaselect.diffusion.families.base import FEATURES, POST_FEATURES, Tap, whole_output
from mmaselect.diffusion.families.lookup import register_family
from mmaselect.diffusion.families.text import TextFamily
from mmaselect.diffusion.families.tokens import last_tokens


@register_family
class PRXFamily(TextFamily):
    """``PRXTransformer2DModel``: ``Photoroom/prx-512-t2i-sft``, ...

    Blocks run over image tokens only; one projection gives their Q, K and V. Among the keys of the
    attention product the text's come first.

    Args:
        config: The transformer's config.

    Raises:
        ValueError: If it is that of a model of pixels.
    """

    transformer_class = 'PRXTransformer2DModel'
    title = 'PRX'
    pipeline_class = 'PRXPipeline'
    min_diffusers = '0.36'
    stacks = (('depth', 'blocks'),)
    features = FEATURES + POST_FEATURES

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        if config.get('bottleneck_size') is not None:
            raise ValueError(
                f'this {self.title} works on pixels (bottleneck_size={config["bottleneck_size"]}), '
                f'with a pipeline of its own, and is not supported: use one that works on latents, '
                f"such as 'Photoroom/prx-512-t2i-sft'"
            )

    @property
    def width(self) -> int:
        return int(self.config['hidden_size'])

    def embed(self, pipeline: Any, prompt: str) -> dict[str, Tensor]:
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
