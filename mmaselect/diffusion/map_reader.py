# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""From images to feature maps, for every face: encode, add noise, read at each timestep, join."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from mmaselect.diffusion.finite_watch import FiniteWatch
from mmaselect.diffusion.frozen_dit import FrozenDiT, TapKey
from mmaselect.diffusion.process import draw_noise, noise_seed
from mmaselect.diffusion.timestep_plan import TimestepPlan

Maps = dict[TapKey, Tensor]


class Noise(Protocol):
    """What images are noised with.

    Attributes:
        draws: Draws whose features are averaged.
    """

    draws: int

    def draw(self, latent: Tensor, number: int) -> Tensor:
        """Standard normal noise of a latent's shape, on its device."""


class Store(Protocol):
    """Where maps, or latents, of images are kept.

    Attributes:
        kind: ``'features'`` or ``'latents'``, which of them it keeps.
    """

    @property
    def kind(self) -> str: ...

    def maps(self, images: Tensor, timestep: int, compute: Callable[[Tensor], Maps]) -> Maps:
        """Maps of a batch; ``compute`` gives those of images that are not there."""

    def latent(self, images: Tensor, timestep: int, compute: Callable[[Tensor], Tensor]) -> Tensor:
        """Latents of a batch; ``compute`` gives those of images that are not there."""


class FixedNoise:
    """Noise that depends on a seed and on the latent's shape alone.

    Args:
        seed: The seed.
        draws: How many draws there are.
    """

    def __init__(self, seed: int = 0, draws: int = 1) -> None:
        self.seed, self.draws = seed, draws
        self._kept: Tensor | None = None

    def draw(self, latent: Tensor, number: int) -> Tensor:
        """One of the draws, the same for all images of a batch.

        Args:
            latent: What is to be noised.
            number: Which of the draws.
        """
        shape, kept = tuple(latent.shape[1:]), self._kept
        if kept is None or kept.shape[1:] != shape or kept.device != latent.device:
            seeds = [noise_seed(self.seed, 0, n) for n in range(self.draws)]
            self._kept = kept = draw_noise(shape, seeds, latent.device)
        return kept[number].expand_as(latent)


@torch.no_grad()
def read_maps(
    dit: FrozenDiT,
    plan: TimestepPlan,
    picked: int,
    images: Tensor,
    noise: Noise,
    watch: FiniteWatch,
    store: Store | None = None,
) -> Maps:
    """Feature maps of a batch.

    An image is encoded once, and has the same noise at all timesteps.

    Args:
        dit: The frozen model.
        plan: At which timesteps it is read, and how their maps become one.
        picked: The timestep that stands for ``'auto'`` in the plan.
        images: (B, 3, H, W), RGB in [-1, 1].
        noise: What is added.
        watch: Looks at the maps of each pass.
        store: Where maps or latents are kept; nothing is kept if None.

    Returns:
        dict: (block, feature) to float32 maps (B, C, ceil(H / stride), ceil(W / stride)).

    Raises:
        FloatingPointError: If features are not finite.
    """

    def read(pixels: Tensor, latent: Tensor, steps: Sequence[int]) -> list[Maps]:
        noises = [noise.draw(latent, number) for number in range(noise.draws)]
        found = []
        for step in steps:
            drawn = [dit.features(latent, step, one) for one in noises]
            maps = drawn[0]
            if len(drawn) > 1:
                maps = {k: torch.stack([one[k].float() for one in drawn]).mean(0) for k in maps}
            if not torch.jit.is_tracing():
                watch.check(list(maps.values()), dit, pixels, step)
            found.append(maps)
        return found

    def encode_and_read(step: int, missing: Tensor) -> Maps:
        return read(missing, dit.encode(missing), [step])[0]

    if images.device.type != 'meta':
        dit.follow(images.device)
    steps = plan.resolved(picked)
    if store is not None and store.kind == 'features':
        read_at = [store.maps(images, step, partial(encode_and_read, step)) for step in steps]
    else:
        latent = dit.encode(images) if store is None else store.latent(images, picked, dit.encode)
        read_at = read(images, latent, steps)
    return {key: value.float() for key, value in plan.fuse(read_at).items()}
