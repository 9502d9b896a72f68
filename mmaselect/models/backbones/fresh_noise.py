# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Fresh noise for every forward pass, the same again when a run is resumed."""

from __future__ import annotations

import numpy as np
import torch
from mmengine.dist import get_rank
from mmengine.logging import MessageHub
from torch import Tensor


class FreshNoise:
    """Draws that depend on the run's seed, the iteration, the rank and nothing before them.

    Inside a run of MMEngine's Runner, seed and iteration are what its message hub says, so a run
    that was killed and resumed draws what the unbroken one would have drawn. Several passes of one
    iteration differ. Outside of a run, draws come from PyTorch's global generator.
    """

    def __init__(self) -> None:
        self._place: tuple[int, ...] | None = None
        self._passes = 0

    def begin(self) -> None:
        """Say that a forward pass starts."""
        place = self._place_in_run()
        self._passes = self._passes + 1 if place == self._place else 0
        self._place = place

    def draw(self, latent: Tensor, number: int = 0) -> Tensor:
        """Standard normal noise of a latent's shape, dtype and device.

        Args:
            latent: What is to be noised.
            number: Which of the draws of this pass.
        """
        if self._place is None:
            # Not randn_like, whose draws depend on how the latent lies in memory.
            return torch.randn(latent.shape, dtype=latent.dtype, device=latent.device)
        sequence = np.random.SeedSequence([*self._place, self._passes, number])
        seed = int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))
        generator = torch.Generator(latent.device).manual_seed(seed)
        return torch.randn(
            latent.shape, generator=generator, dtype=latent.dtype, device=latent.device
        )

    @staticmethod
    def _place_in_run() -> tuple[int, ...] | None:
        """Seed, iteration, rank and stage; None outside of a run."""
        hub = MessageHub.get_current_instance()
        stage, seed = hub.get_info('loop_stage'), hub.get_info('seed')
        if stage is None or seed is None:
            return None
        return int(seed), int(hub.get_info('iter', 0)), get_rank(), int(stage != 'train')
