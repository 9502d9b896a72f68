# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""CogView3-Plus (arXiv 2403.05121): CogView4's blocks with sine-cosine positions, and DDPM."""

from __future__ import annotations

from mmaselect.diffusion.families.base import Published
from mmaselect.diffusion.families.cogview4 import CogView4Family
from mmaselect.diffusion.families.lookup import register_family
from mmaselect.diffusion.loading import PipelineSource
from mmaselect.diffusion.process import ForwardProcess, build_process

_CONFIG = {
    'num_layers': 30,
    'attention_head_dim': 40,
    'num_attention_heads': 64,
    'text_embed_dim': 4096,
    'pos_embed_max_size': 128,
}


@register_family
class CogView3PlusFamily(CogView4Family):
    """``CogView3PlusTransformer2DModel``: ``THUDM/CogView3-Plus-3B``.

    There is QK norm, no rotary embedding.
    """

    transformer_class = 'CogView3PlusTransformer2DModel'
    title = 'CogView3-Plus'
    pipeline_class = 'CogView3PlusPipeline'
    waits_in = ''
    published = (
        Published(
            'THUDM/CogView3-Plus-3B', _CONFIG, 16, 'DDPM, scaled linear, SNR / 4', 'apache-2.0'
        ),
    )

    def build_process(self, source: PipelineSource) -> ForwardProcess:
        return build_process(source.config('scheduler'))

    def check_grid(self, grid: tuple[int, int], stride: int) -> None:
        side = int(self.config['pos_embed_max_size'])
        if max(grid) > side:
            raise ValueError(
                f'{self.title} has positions for {side}x{side} tokens, that is images up to '
                f'{side * stride}x{side * stride}; got {grid[0]}x{grid[1]} tokens '
                f'({grid[0] * stride}x{grid[1] * stride}): resize or crop the images'
            )
