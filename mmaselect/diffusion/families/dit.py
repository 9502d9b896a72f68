# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""DiT (arXiv 2212.09748): class-conditional, adaLN-zero, sine-cosine positions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mmaselect.checks import is_whole_number, shorten
from mmaselect.diffusion.families.base import Family, Tap, whole_output
from mmaselect.diffusion.families.lookup import register_family
from mmaselect.diffusion.families.tokens import usual_taps
from mmaselect.diffusion.loading import PipelineSource


@register_family
class DiTFamily(Family):
    """``DiTTransformer2DModel``: ``facebook/DiT-XL-2-256``, ``facebook/DiT-XL-2-512``, our own."""

    transformer_class = 'DiTTransformer2DModel'
    title = 'DiT'

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
