# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""The device that a model runs on."""

from __future__ import annotations

import torch

from mmaselect.checks import shorten


def pick_device(device: str | torch.device | None) -> torch.device:
    """A device by its name; CUDA if there is one where none is named.

    Raises:
        ValueError: If there is no such device.
    """
    if device is None:
        device = 'cuda' if torch.cuda.is_available() else 'cpu'
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (TypeError, ValueError, RuntimeError, OverflowError, AssertionError) as error:
        raise ValueError(
            f"device must be one that PyTorch has here, such as 'cpu' or 'cuda'; got "
            f'{shorten(device)} ({str(error).splitlines()[0]})'
        ) from error
    return found
