# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""A pyramid of one map, for detectors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn
from torchvision.models.convnext import LayerNorm2d

from mmaselect.checks import is_number, is_sequence, shorten, whole_number
from mmaselect.openmmlab.registries import MODELS


@MODELS.register_module()
class SimpleFeaturePyramid(BaseModule):
    """The simple feature pyramid of ViTDet, from the maps of a transformer, which have one stride.

    Each level is made of the same input: enlarged by transposed convolutions, as it is, or reduced
    by max pooling; then brought to ``out_channels`` by a 1 x 1 and a 3 x 3 convolution, with layer
    norm after each. See section 3 of `Exploring Plain Vision Transformer Backbones for Object
    Detection <https://arxiv.org/abs/2203.16527>`_. An ``FPN`` alone cannot do this: on maps of one
    stride its levels are all of one size.

    Args:
        in_channels: Channels of the map, or of each map where the backbone reads several
            blocks; they are joined.
        out_channels: Channels of each level.
        rescales: Size of each level over that of the input, in descending order: powers of 2. For
            the strides 4, 8, 16, 32 of detectors these are (4, 2, 1, 0.5) where the transformer's
            stride is 16, and (1, 0.5, 0.25, 0.125) where it is 4.
        num_outs: Levels that are given; those beyond ``rescales`` are every second position of the
            level before, as ViTDet makes the one of stride 64 for the RPN.
        init_cfg: As in every ``BaseModule``.

    Shape:
        - Input: tuple of (B, C, H, W).
        - Output: tuple of num_outs maps (B, out_channels, H * rescale, W * rescale), rounded down.

    Raises:
        ValueError: If an argument is out of range, or the maps are not those of ``in_channels``.

    Example:
        >>> import torch
        >>> from mmaselect.models import SimpleFeaturePyramid
        >>> levels = SimpleFeaturePyramid(24, out_channels=8)([torch.rand(2, 24, 6, 8)])
        >>> [tuple(level.shape[2:]) for level in levels]
        [(24, 32), (12, 16), (6, 8), (3, 4), (2, 2)]
    """

    def __init__(
        self,
        in_channels: int | Sequence[int],
        out_channels: int = 256,
        rescales: Sequence[float] = (4, 2, 1, 0.5),
        num_outs: int = 5,
        init_cfg: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        given = in_channels if is_sequence(in_channels) else [in_channels]
        self.in_channels = [whole_number('in_channels', one, 1) for one in given]
        if not self.in_channels:
            raise ValueError('in_channels is empty: give one number for each map')
        out_channels = whole_number('out_channels', out_channels, 1)
        steps = _powers(rescales)
        self.num_outs = whole_number('num_outs', num_outs, len(steps))
        self.levels = nn.ModuleList(
            _level(sum(self.in_channels), out_channels, step) for step in steps
        )

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Levels of the pyramid, the largest first."""
        found = [one.shape[1] for one in inputs]
        if found != self.in_channels:
            raise ValueError(
                f'the backbone gives maps of {found} channels, and in_channels is for '
                f'{self.in_channels}'
            )
        joined = inputs[0] if len(inputs) == 1 else torch.cat(list(inputs), 1)
        levels = [level(joined) for level in self.levels]
        while len(levels) < self.num_outs:
            levels.append(nn.functional.max_pool2d(levels[-1], 1, 2))
        return tuple(levels)


def _powers(rescales: Any) -> list[int]:
    """Powers of 2, from the scales.

    Raises:
        ValueError: If they are something else, or do not descend.
    """
    scales = list(rescales) if is_sequence(rescales) else []
    fits = scales and all(
        is_number(scale) and scale > 0 and math.log2(scale).is_integer() for scale in scales
    )
    powers = [int(math.log2(scale)) for scale in scales] if fits else []
    if not powers or powers != sorted(set(powers), reverse=True):
        raise ValueError(
            f'rescales must be different powers of 2, the largest first, such as (4, 2, 1, 0.5); '
            f'got {shorten(rescales)}'
        )
    return powers


def _level(channels: int, out_channels: int, power: int) -> nn.Sequential:
    """A level that is 2**power times as large as the map it is made of."""
    layers: list[nn.Module] = []
    for step in range(power):
        narrower = max(channels // 2, 1)
        layers.append(nn.ConvTranspose2d(channels, narrower, 2, stride=2))
        if step < power - 1:
            layers += [LayerNorm2d(narrower), nn.GELU()]
        channels = narrower
    if power < 0:
        layers.append(nn.MaxPool2d(2**-power))
    return nn.Sequential(
        *layers,
        nn.Conv2d(channels, out_channels, 1, bias=False),
        LayerNorm2d(out_channels),
        nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
        LayerNorm2d(out_channels),
    )
