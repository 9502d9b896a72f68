# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""DiT (arXiv 2212.09748): class-conditional, adaLN-zero, sine-cosine positions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mmaselect.checks import is_whole_number, shorten
from mmaselect.diffusion.families.base import Family, Published, Tap, whole_output
from mmaselect.diffusion.families.lookup import register_family
from mmaselect.diffusion.families.tokens import usual_taps
from mmaselect.diffusion.loading import PipelineSource

_XL_256 = {
    'sample_size': 32,
    'patch_size': 2,
    'in_channels': 4,
    'out_channels': 8,
    'num_layers': 28,
    'attention_head_dim': 72,
    'num_attention_heads': 16,
    'num_embeds_ada_norm': 1000,
}
_PIXELS = {'patch_size': 4, 'in_channels': 3, 'out_channels': 3, 'num_embeds_ada_norm': 10}
_XL_512 = {**_XL_256, 'sample_size': 64}


@register_family
class DiTFamily(Family):
    """``DiTTransformer2DModel``: ``facebook/DiT-XL-2-256``, ``facebook/DiT-XL-2-512``, our own."""

    transformer_class = 'DiTTransformer2DModel'
    title = 'DiT'
    published = (
        Published(
            'mmaselect://dit_cifar10',
            {
                **_PIXELS,
                'sample_size': 32,
                'num_layers': 6,
                'attention_head_dim': 56,
                'num_attention_heads': 4,
            },
            4,
            'DDPM, linear',
            'apache-2.0',
            brief=True,
        ),
        Published(
            'mmaselect://dit_digits',
            {
                **_PIXELS,
                'sample_size': 28,
                'num_layers': 5,
                'attention_head_dim': 32,
                'num_attention_heads': 3,
            },
            4,
            'DDPM, linear',
            'apache-2.0',
            brief=True,
        ),
        Published('facebook/DiT-XL-2-256', _XL_256, 16, 'DDPM, linear', 'cc-by-nc-4.0'),
        Published('facebook/DiT-XL-2-512', _XL_512, 16, 'DDPM, linear', 'cc-by-nc-4.0'),
    )

    @property
    def num_classes(self) -> int:
        """Classes that the model was trained on; this number is also the null class."""
        return int(self.config['num_embeds_ada_norm'])

    def prepare_condition(
        self, spec: Any, source: PipelineSource, dtype: torch.dtype
    ) -> dict[str, Tensor]:
        if spec is None:
            spec = self.num_classes
        if not is_whole_number(spec) or not 0 <= spec <= self.num_classes:
            raise ValueError(
                f'condition {shorten(spec)} does not fit a DiT: give a class label from 0 to '
                f'{self.num_classes - 1}, or None for the null class ({self.num_classes})'
            )
        return {'class_labels': torch.tensor([int(spec)])}

    def condition_in_words(self, spec: Any) -> str:
        label = self.num_classes if spec is None else int(spec)
        return f'{label} (the null class)' if label == self.num_classes else str(label)

    def run(
        self,
        transformer: nn.Module,
        latent: Tensor,
        model_time: Tensor,
        condition: Mapping[str, Tensor],
    ) -> None:
        transformer(
            latent,
            timestep=self.time_input(model_time),
            class_labels=condition['class_labels'],
        )

    def time_input(self, model_time: Tensor) -> Tensor:
        """What the transformer is told of the time: the timestep, a whole number."""
        return model_time.long()

    def tap(self, transformer: nn.Module, index: int, feature: str) -> Tap:
        block = self.block(transformer, index)
        return usual_taps(block, block.attn1, whole_output)[feature]
