# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Features that are not finite stop a run, and say why, without slowing a GPU down."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mmaselect.diffusion.frozen_dit import FrozenDiT
from mmaselect.diffusion.late_maximum import LateMaximum


class FiniteWatch:
    """Raises when a feature map holds NaN or infinity; never waits for the device, see
    :class:`LateMaximum`.
    """

    def __init__(self) -> None:
        self._largest = LateMaximum()

    def check(self, maps: Sequence[Tensor], dit: FrozenDiT, images: Tensor, timestep: int) -> None:
        """Look at the feature maps of a pass.

        Args:
            maps: The feature maps.
            dit: The model that gave them.
            images: Images that it was given, in [-1, 1].
            timestep: Where it was read.

        Raises:
            FloatingPointError: If they, or those of the passes before, were not finite.
        """
        maps = [each for each in maps if each.numel()]
        if not maps:
            return
        # NaN and infinity pass through the maximum.
        largest = torch.stack([each.detach().abs().amax() for each in maps]).amax().float()
        found = self._largest.update(largest)
        if found is not None and not math.isfinite(found):
            when = self._largest.lateness if self._largest.is_late else ''
            raise FloatingPointError(f'{explain(dit, images, timestep)}{when}')


def explain(dit: FrozenDiT, images: Tensor, timestep: int) -> str:
    """Where NaN or infinity in the features came from, and what to do about it."""
    dtype = dit.dtype
    problem = f'features were not finite (NaN or infinity) at timestep {timestep} in {dtype}'
    if not bool(images.isfinite().all()):
        return (
            f'{problem}: the images that reached the backbone are not finite. Look for it in the '
            f'data set, its transforms, and the mean and std of the data_preprocessor'
        )
    broken = [
        name
        for name, parameter in dit.named_parameters()
        if parameter.device.type != 'meta' and not bool(parameter.isfinite().all())
    ]
    if broken:
        others = f' and {len(broken) - 1} more' if len(broken) > 1 else ''
        half = ', or use dtype="fp32" if they overflowed' if dtype == torch.float16 else ''
        return (
            f'{problem}: the frozen weights are not finite in {broken[0]}{others}. Download or '
            f'convert the model again{half}'
        )
    if dtype == torch.float16:
        return f'{problem}: the model overflows in it. Use dtype="bf16" or "fp32"'
    return (
        f'{problem}, though images and weights are: the model itself fails there. Use dtype="fp32" '
        f'if it is not, or another timestep'
    )
