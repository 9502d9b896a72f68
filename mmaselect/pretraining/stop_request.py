# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Stopping a run before its end, with everything saved."""

from __future__ import annotations

import signal
import time
from typing import Any

import torch
from accelerate import Accelerator


class StopRequest:
    """Whether a run is to stop: SIGTERM or SIGINT came, or its time is up.

    A context manager: inside it the two signals are noted, and do not end the process.

    Args:
        accelerator: Its processes stop together.
        max_minutes: How long the run may take, from entering on; None for no limit.

    Attributes:
        signal_number (int): The signal that came to this process; 0 if none did.
    """

    def __init__(self, accelerator: Accelerator, max_minutes: float | None = None) -> None:
        self.accelerator = accelerator
        self.max_minutes = max_minutes
        self.signal_number = 0
        self._handlers: dict[int, Any] = {}
        self._started = 0.0

    def __enter__(self) -> StopRequest:
        self._started = time.monotonic()
        self._handlers = {
            number: signal.signal(number, self._note_signal)
            for number in (signal.SIGTERM, signal.SIGINT)
        }
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _note_signal(self, number: int, frame: Any) -> None:
        self.signal_number = number

    def was_made(self) -> bool:
        """Whether any process wants to stop: all must do so at the same step."""
        minutes = (time.monotonic() - self._started) / 60
        late = self.max_minutes is not None and minutes > self.max_minutes
        mine = late or self.signal_number > 0
        if self.accelerator.num_processes == 1:
            return mine
        flag = torch.tensor(float(mine), device=self.accelerator.device)
        return bool(self.accelerator.reduce(flag, 'sum') > 0)
