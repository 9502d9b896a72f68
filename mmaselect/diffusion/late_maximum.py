# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""The largest value of many passes, read without a wait for the device."""

from __future__ import annotations

import torch
from torch import Tensor

#: Passes whose largest value is read together, on an accelerator.
PASSES_PER_READ = 50


class LateMaximum:
    """Gives the largest value of each pass to who checks it; on an accelerator, later.

    The first pass is read at once, and so is every pass on a CPU. On an accelerator later passes
    only keep the largest value there: it is copied over every ``PASSES_PER_READ`` passes and read
    once it has arrived, so that no step waits for the device.

    Attributes:
        is_late: Whether the value that was given last is of earlier passes too.
    """

    def __init__(self) -> None:
        self.is_late = False
        self._passes = 0
        self._largest: Tensor | None = None
        self._arriving: tuple[Tensor, torch.cuda.Event] | None = None

    def __reduce__(self) -> tuple:
        return type(self), ()  # a copy of the model starts anew: events cannot be copied

    def update(self, value: Tensor) -> float | None:
        """Count a pass.

        Args:
            value: Its largest value, a tensor of one number.

        Returns:
            float | None: A value to look at; None if there is none yet.
        """
        self._passes += 1
        if value.is_meta:
            return None
        if self._passes == 1 or not value.is_cuda:
            self.is_late = False
            return value.item()
        self._largest = value if self._largest is None else self._largest.maximum(value)
        found = None
        if self._arriving is not None and self._arriving[1].query():
            found, self._arriving = self._arriving[0].item(), None
            self.is_late = True
        if self._arriving is None and self._passes % PASSES_PER_READ == 0:
            host = torch.empty((), pin_memory=True)
            host.copy_(self._largest, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
            self._arriving, self._largest = (host, event), None
        return found

    @property
    def lateness(self) -> str:
        """For messages: how long ago what is reported may have happened."""
        return f' (noticed up to {2 * PASSES_PER_READ} batches after it happened)'
