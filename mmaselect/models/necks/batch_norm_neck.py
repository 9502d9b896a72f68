# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Batch norm of feature maps, for linear heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.model import BaseModule
from torch import Tensor, nn

from mmaselect.checks import is_sequence, shorten, whole_number
from mmaselect.openmmlab.registries import MODELS


@MODELS.register_module()
class BatchNormNeck(BaseModule):
    """Normalize each channel of each map over the batch, and nothing else.

    Channels of a diffusion transformer differ in scale by orders of magnitude. With a linear layer
    after it this is the linear evaluation of `DINOv2 <https://arxiv.org/abs/2304.07193>`_.

    Args:
        in_channels: Channels of each map.
        affine: Whether scale and shift are learnt.
        init_cfg: As in every ``BaseModule``.

    Raises:
        ValueError: If ``in_channels`` is not a list of whole numbers, or not one for each map.

    Example:
        >>> import torch
        >>> from mmaselect.models import BatchNormNeck
        >>> (normal,) = BatchNormNeck([4])([torch.rand(8, 4, 3, 3) * 100])
        >>> round(normal.std().item(), 1)
        1.0
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        affine: bool = True,
        init_cfg: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if not is_sequence(in_channels):
            raise ValueError(
                f'in_channels must be a list, one number for each map, got {shorten(in_channels)}'
            )
        self.norms = nn.ModuleList(
            nn.BatchNorm2d(whole_number('in_channels', one, 1), affine=affine)
            for one in in_channels
        )

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Normalized maps, of the same shapes."""
        if len(inputs) != len(self.norms):
            raise ValueError(
                f'the backbone gives {len(inputs)} maps, and in_channels is for {len(self.norms)}'
            )
        return tuple(norm(one) for norm, one in zip(self.norms, inputs, strict=True))
