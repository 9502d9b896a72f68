# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""A few images over the timesteps around a pick, as a page shows them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Strip:
    """What the model was given and what it made of it, at a few timesteps.

    Attributes:
        title: The block and feature.
        timesteps: In increasing order.
        pick: The picked one of them.
        noise_levels: Standard deviation of the noise at each.
        images: (N, H, W, 3), uint8.
        inputs: By timestep: (N, H, W, 3), uint8, the noisy images.
        colors: By timestep: (N, h, w, 3), uint8, the tokens as colors.
    """

    title: str
    timesteps: tuple[int, ...]
    pick: int
    noise_levels: tuple[float, ...]
    images: np.ndarray
    inputs: dict[int, np.ndarray]
    colors: dict[int, np.ndarray]
