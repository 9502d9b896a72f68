# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""The noise that images are read with: fresh in every forward pass, or fixed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_rank
from mmengine.logging import MessageHub
from torch import Tensor

from mmaselect.checks import choice, keywords, seed_number, whole_number
from mmaselect.diffusion.process import MAX_DRAWS

MODES = ('auto', 'fresh', 'fixed')


@dataclass(frozen=True)
class NoiseOptions:
    """How noise is drawn.

    Attributes:
        mode: ``'fresh'`` is a new draw in each forward pass, ``'fixed'`` depends on the seed and
            the latent's shape alone, ``'auto'`` is fresh in training and fixed in evaluation.
        seed: Seed of fixed noise.
        draws: Draws whose features are averaged.

    Raises:
        ValueError: If a value is of another type, or out of range.
    """

    mode: str = 'auto'
    seed: int = 0
    draws: int = 1

    def __post_init__(self) -> None:
        choice('noise', self.mode, MODES)
        object.__setattr__(self, 'seed', seed_number('seed of noise', self.seed))
        object.__setattr__(self, 'draws', whole_number('draws of noise', self.draws, 1, MAX_DRAWS))

    def is_fresh(self, training: bool) -> bool:
        """Whether a pass in training, or in evaluation, draws anew."""
        return training if self.mode == 'auto' else self.mode == 'fresh'

    @classmethod
    def parse(cls, noise: str | Mapping[str, Any] | NoiseOptions) -> NoiseOptions:
        """Options from what a config says: the mode, a dict of fields, or options."""
        if isinstance(noise, NoiseOptions):
            return noise
        if not isinstance(noise, Mapping):
            return cls(noise)
        return cls(**keywords('noise', noise, tuple(each.name for each in fields(cls))))


class FreshNoise:
    """Draws that depend on the run's seed, the iteration, the rank and nothing before them.

    Inside a run of MMEngine's Runner, seed and iteration are what its message hub says, so a run
    that was killed and resumed draws what the unbroken one would have drawn. Several passes of one
    iteration differ. Outside of a run, draws come from PyTorch's global generator.

    Args:
        draws: How many draws a pass takes.
    """

    def __init__(self, draws: int = 1) -> None:
        self.draws = draws
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
