# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""The gate that batches of pixels pass on every face: RGB in [-1, 1] comes out, or an error."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from mmaselect.diffusion.late_maximum import LateMaximum
from mmaselect.images.inputs import OVERSHOOT, looks_like_unit_range

ORDERS = ('rgb', 'bgr')


class PixelGate(nn.Module):
    """Undoes a normalization, and checks what comes out.

    Every batch is checked, without a wait for the device: see :class:`LateMaximum`.

    Args:
        mean: What was subtracted from red, green and blue, or blue, green and red.
        std: Standard deviation that it was divided by.
        unit: Largest value of a channel before: 255 or 1.
        order: Order of the channels, ``'rgb'`` or ``'bgr'``.
        advice: What to do about pixels in another range; ends the message.
        is_sure: Whether mean and std are known. Where they are not, a batch that looks like images
            from 0 to 1 is worth a warning.
    """

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        unit: float,
        order: str = 'rgb',
        advice: str = '',
        is_sure: bool = False,
    ) -> None:
        super().__init__()
        self.unit = unit
        self.scale, self.shift = torch.ones(3, 1, 1), torch.zeros(3, 1, 1)
        self.set(mean, std, order, advice, is_sure)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PixelGate:
        super()._apply(fn, recurse)
        # The device alone: engines that train in 16 bits cast whatever is a buffer.
        device = fn(self.scale).device
        self.scale, self.shift = self.scale.to(device), self.shift.to(device)
        return self

    def set(
        self, mean: Sequence[float], std: Sequence[float], order: str, advice: str, is_sure: bool
    ) -> None:
        """Undo another normalization from now on; see the class."""
        half = self.unit / 2
        center, spread = (torch.tensor(v, dtype=torch.float32).view(3, 1, 1) for v in (mean, std))
        # Pixels as the model wants them are input * scale + shift.
        self.scale.copy_(spread / half)
        self.shift.copy_(center / half - 1)
        self.order, self.advice, self.is_sure = order, advice, is_sure
        self._largest = LateMaximum()
        self._is_first = True

    def forward(self, inputs: Tensor) -> Tensor:
        """RGB in [-1, 1] from a batch (B, 3, H, W).

        Raises:
            ValueError: If the shape is another, or pixels are far outside of [-1, 1].
        """
        if inputs.ndim != 4 or inputs.shape[1] != 3:
            raise ValueError(
                f'expected a batch of images of three channels, (B, 3, H, W); got shape '
                f'{tuple(inputs.shape)}'
            )
        if not inputs.numel():
            raise ValueError(f'the batch is empty: its shape is {tuple(inputs.shape)}')
        if self.scale.device != inputs.device:
            self.to(inputs.device)
        images = inputs.float() * self.scale + self.shift
        # Tracers (FLOPs counters) bring random numbers.
        if not torch.jit.is_tracing():
            self._check(images)
        return images.flip(1) if self.order == 'bgr' else images

    def _check(self, images: Tensor) -> None:
        # NaN is not a range: the watch for finite features says whose fault it is.
        found = self._largest.update(images.detach().abs().amax())
        if found is not None and found > 1 + OVERSHOOT:
            span = f'span {images.amin():.2f} to {images.amax():.2f} instead of -1 to 1'
            if self._largest.is_late:
                span = f'reach {found:.2f} instead of 1{self._largest.lateness}'
            raise ValueError(f'pixels {span}. {self.advice}')
        if self._is_first and not images.is_meta:
            self._is_first = False
            if not self.is_sure and looks_like_unit_range([images]):
                warnings.warn(
                    'all pixels are in the upper half of [-1, 1], as if they were images from 0 '
                    f'to 1. {self.advice}',
                    stacklevel=4,
                )
