# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""FLUX.1: two-stream blocks, then single-stream blocks, on latents packed 2x2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mmaselect.diffusion.families.base import (
    FEATURES,
    POST_FEATURES,
    TWO_STACKS,
    Published,
    Tap,
    whole_output,
)
from mmaselect.diffusion.families.lookup import register_family
from mmaselect.diffusion.families.text import TextFamily
from mmaselect.diffusion.families.tokens import last_tokens, member, usual_taps
from mmaselect.diffusion.single_file import OriginalLayout


def pack(latent: Tensor) -> Tensor:
    """2x2 latent pixels a token: (B, C, H, W) to (B, H/2 * W/2, C * 4), channel before pixel."""
    patches = latent.unflatten(3, (-1, 2)).unflatten(2, (-1, 2))  # B C h 2 w 2
    return patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def position_ids(grid: tuple[int, int], latent: Tensor) -> Tensor:
    """(0, row, column) of each image token, row-major: (h * w, 3), as precise as the latent."""
    rows, columns = (torch.arange(side, device=latent.device) for side in grid)
    return torch.cartesian_prod(rows.new_zeros(1), rows, columns).to(latent.dtype)


_DEV = {
    'patch_size': 1,
    'in_channels': 64,
    'num_layers': 19,
    'num_single_layers': 38,
    'attention_head_dim': 128,
    'num_attention_heads': 24,
    'joint_attention_dim': 4096,
    'pooled_projection_dim': 768,
    'guidance_embeds': True,
}
_SCHNELL = {**_DEV, 'guidance_embeds': False}


@register_family
class FluxFamily(TextFamily):
    """``FluxTransformer2DModel``: FLUX.1-dev, -schnell, -Krea.

    Blocks are counted through both stacks: of FLUX.1-dev's 57, the first 19 have two streams, the
    other 38 one, in which the text's tokens come first.

    Options: ``guidance``, the scale that distilled models (dev) are told, 3.5 as in the pipeline;
    models without a guidance embedding (schnell) ignore it. ``max_sequence_length``, T5 tokens
    that the prompt is padded to. T5 cannot be left out: CLIP gives but the pooled embedding.
    """

    transformer_class = 'FluxTransformer2DModel'
    title = 'FLUX.1'
    pipeline_class = 'FluxPipeline'
    condition_options: ClassVar[dict[str, Any]] = {'guidance': 3.5, 'max_sequence_length': 512}
    features = FEATURES + POST_FEATURES
    stacks = TWO_STACKS
    original_layout: ClassVar[OriginalLayout | None] = OriginalLayout(
        'double_blocks', 'single_blocks', width=3072
    )
    published: ClassVar[tuple[Published, ...]] = (
        Published(
            'black-forest-labs/FLUX.1-dev',
            _DEV,
            16,
            'flow, shift by size',
            'flux-1-dev-non-commercial-license',
            gated=True,
        ),
        Published(
            'black-forest-labs/FLUX.1-schnell', _SCHNELL, 16, 'flow', 'apache-2.0', gated=True
        ),
    )

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        outputs = config.get('out_channels') or config['in_channels']
        if outputs != config['in_channels']:
            raise ValueError(
                f'this {self.title} takes a second image next to the noisy one (in_channels='
                f'{config["in_channels"]}, out_channels={outputs}), as the Fill, Canny and Depth '
                f"variants do, and is not supported: use 'black-forest-labs/FLUX.1-dev'"
            )

    @property
    def patch_size(self) -> int:
        return 2  # by packing, outside of the transformer, whose config says 1

    @property
    def in_channels(self) -> int:
        return int(self.config['in_channels']) // self.patch_size**2

    def embed(self, pipeline: Any, prompt: str, **options: Any) -> dict[str, Tensor]:
        embeds, pooled, _ = pipeline.encode_prompt(
            prompt, device='cpu', max_sequence_length=options['max_sequence_length']
        )
        condition = {'prompt_embeds': embeds, 'pooled_prompt_embeds': pooled}
        if self.config.get('guidance_embeds'):
            condition['guidance'] = torch.tensor([options['guidance']])
        return condition

    def run(
        self,
        transformer: nn.Module,
        latent: Tensor,
        model_time: Tensor,
        condition: Mapping[str, Tensor],
    ) -> None:
        embeds = condition['prompt_embeds']
        transformer(
            pack(latent),
            encoder_hidden_states=embeds,
            pooled_projections=condition['pooled_prompt_embeds'],
            # In the latent's dtype before the division, as in the pipeline; times 1000 follows.
            timestep=model_time.to(latent.dtype) / 1000,
            img_ids=position_ids(self.grid(latent), latent),
            txt_ids=torch.zeros(embeds.shape[1], 3, device=latent.device),
            guidance=condition.get('guidance'),
        )

    def tap(self, transformer: nn.Module, index: int, feature: str) -> Tap:
        block = self.block(transformer, index)
        if index < self.stack_lengths[0]:
            # (image, text) from the attention, but (text, image) from the block.
            taps = usual_taps(block, block.attn, whole_output, member(0), member(1), last_tokens)
        else:
            taps = usual_taps(block, block.attn, last_tokens, output=member(1))
        return taps[feature]
