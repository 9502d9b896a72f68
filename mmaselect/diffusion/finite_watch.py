# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Features that are not finite stop a run, and say why, without slowing a GPU down."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mmaselect.diffusion.frozen_dit import FrozenDiT

#: Passes whose largest feature is read together, on an accelerator.
PASSES_PER_READ = 50


class FiniteWatch:
    """Raises when a feature map holds NaN or infinity.

    The first pass is checked at once, and so is every pass on a CPU. On an accelerator later passes
    only keep the largest absolute value there: it is copied over every ``PASSES_PER_READ`` passes
    and read once it has arrived, so that no step waits for the device.
    """

    def __init__(self) -> None:
        self._passes = 0
        self._largest: Tensor | None = None
        self._arriving: tuple[Tensor, torch.cuda.Event] | None = None

    def __reduce__(self) -> tuple:
        return type(self), ()  # a copy of the model starts anew: events cannot be copied

    def check(self, maps: Sequence[Tensor], dit: FrozenDiT, images: Tensor, timestep: int) -> None:
        """Look at the feature maps of a pass.

        Args:
            maps: The feature maps.
            dit: The model that gave them.
            images: What it was given, in [-1, 1].
            timestep: Where it was read.

        Raises:
            FloatingPointError: If they, or those of the passes before, were not finite.
        """
        maps = [each for each in maps if each.numel()]
        if not maps:
            return
        # NaN and infinity pass through the maximum.
        largest = torch.stack([each.detach().abs().amax() for each in maps]).amax().float()
        self._passes += 1
        if self._passes == 1 or not (largest.is_cuda or largest.is_meta):
            if not math.isfinite(largest.item()):
                raise FloatingPointError(explain(dit, images, timestep))
            return
        self._largest = largest if self._largest is None else self._largest.maximum(largest)
        if self._arriving is not None and self._arriving[1].query():
            arrived, self._arriving = self._arriving[0], None
            if not math.isfinite(arrived.item()):
                raise FloatingPointError(
                    f'{explain(dit, images, timestep)} (noticed up to {2 * PASSES_PER_READ} '
                    f'batches after it happened)'
                )
        if self._arriving is None and largest.is_cuda and self._passes % PASSES_PER_READ == 0:
            host = torch.empty((), pin_memory=True)
            host.copy_(self._largest, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
            self._arriving, self._largest = (host, event), None


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
