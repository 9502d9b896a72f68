# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Data order and random draws as functions of the step: what makes a resumed run exact."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


class DataOrder:
    """The endless sequence of image indices: one permutation after another.

    Args:
        count: Number of images.
        seed: Seed of the permutations.
    """

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed = count, seed
        self._epoch = -1
        self._permutation = np.empty(0, np.int64)

    def __call__(self, start: int, length: int) -> Tensor:
        """Return the indices at positions ``start`` to ``start + length``: (length,), int64."""
        pieces = []
        while length:
            epoch, offset = divmod(start, self.count)
            if epoch != self._epoch:
                self._permutation = np.random.default_rng([self.seed, epoch]).permutation(
                    self.count
                )
                self._epoch = epoch
            pieces.append(self._permutation[offset : offset + length])
            start, length = start + len(pieces[-1]), length - len(pieces[-1])
        return torch.from_numpy(np.concatenate(pieces))


def step_generator(seed: int, step: int, rank: int, device: torch.device) -> torch.Generator:
    """A generator that depends on the seed, the step and the rank, and on nothing before them."""
    state = np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(state >> np.uint64(1)))
