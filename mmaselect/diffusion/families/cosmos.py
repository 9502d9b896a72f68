# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Cosmos-Predict2 (NVIDIA), text to image: clips of one frame, and Wan 2.1's VAE."""

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
from mmaselect.diffusion.process import FlowMatchingProcess, ForwardProcess
from mmaselect.diffusion.single_file import OriginalLayout


class _NoSafetyChecker:
    """In the place of the guardrail of what is generated, which is not needed here.

    With None, the pipeline would load its own.
    """


# As diffusers' conversion script has it.
_2B = {
    'num_attention_heads': 16,
    'num_layers': 28,
    'rope_scale': (1.0, 4.0, 4.0),
    'extra_pos_embed_type': None,
}
_14B = {**_2B, 'num_attention_heads': 40, 'num_layers': 36}


@register_family
class CosmosFamily(TextFamily):
    """``CosmosTransformer3DModel``: ``nvidia/Cosmos-Predict2-2B-Text2Image``, ``...14B...``.

    Text enters by cross-attention only, so every token is an image token. Its sampler counts noise
    by s, which is added to the clean latent before both are divided by 1 + s; what the transformer
    is given and told is a flow, with sigma = s / (1 + s). So timestep t is sigma = t / T, as in a
    flow that is not shifted. The sampler begins at s = 80, which is t = 988 of 1,000.

    Args:
        config: The transformer's config.

    Raises:
        ValueError: If it is not that of a text-to-image model.
    """

    transformer_class = 'CosmosTransformer3DModel'
    title = 'Cosmos 2'
    pipeline_class = 'Cosmos2TextToImagePipeline'
    min_diffusers = '0.34'
    features = FEATURES + POST_FEATURES
    original_layout = OriginalLayout('blocks')
    published = (
        Published(
            'nvidia/Cosmos-Predict2-2B-Text2Image',
            _2B,
            16,
            'flow',
            'nvidia-open-model-license',
            gated=True,
        ),
        Published(
            'nvidia/Cosmos-Predict2-14B-Text2Image',
            _14B,
            16,
            'flow',
            'nvidia-open-model-license',
            gated=True,
        ),
    )

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        use = "use 'nvidia/Cosmos-Predict2-2B-Text2Image'"
        outputs = config['out_channels']
        if outputs != config['in_channels']:
            raise ValueError(
                f'this Cosmos is told which frames of a clip it is given (in_channels='
                f'{config["in_channels"]}, out_channels={outputs}), as the Video2World, '
                f'Predict2.5 and Transfer2.5 models are, and is not supported: {use}'
            )
        if config.get('extra_pos_embed_type'):
            raise ValueError(
                f'this is Cosmos 1.0 (extra_pos_embed_type={config["extra_pos_embed_type"]!r}), '
                f'which makes videos, with a VAE for them, and is not supported: {use}'
            )

    @property
    def patch_size(self) -> int:
        return int(self.config['patch_size'][1])

    def check_grid(self, grid: tuple[int, int], stride: int) -> None:
        sizes = zip(self.config['max_size'], self.config['patch_size'], strict=True)
        limit = max(size // patch for size, patch in sizes)
        self.refuse_beyond(limit, grid, stride, 'rotary positions')

    def build_process(self, source: PipelineSource) -> ForwardProcess:
        # Whatever its scheduler's shift is: the pipeline's noise levels do not depend on it.
        steps = source.config('scheduler').get('num_train_timesteps', 1000)
        return FlowMatchingProcess({'num_train_timesteps': steps})

    def pipeline_parts(self, source: PipelineSource, options: Mapping[str, Any]) -> dict[str, Any]:
        parts = super().pipeline_parts(source, options)
        return {**parts, 'safety_checker': _NoSafetyChecker()}

    def embed(self, pipeline: Any, prompt: str) -> dict[str, Tensor]:
        embeds, _ = pipeline.encode_prompt(
            prompt, do_classifier_free_guidance=False, device=torch.device('cpu')
        )
        return {'prompt_embeds': embeds}

    def run(
        self,
        transformer: nn.Module,
        latent: Tensor,
        model_time: Tensor,
        condition: Mapping[str, Tensor],
    ) -> None:
        transformer(
            latent.unsqueeze(2),
            timestep=(model_time / 1000).to(latent.dtype),
            encoder_hidden_states=condition['prompt_embeds'],
            padding_mask=latent.new_zeros(1, 1, *latent.shape[-2:]),
        )

    def tap(self, transformer: nn.Module, index: int, feature: str) -> Tap:
        block = self.block(transformer, index)
        return usual_taps(block, block.attn1, whole_output)[feature]
