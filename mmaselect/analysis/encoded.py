# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Features of labeled images: one pass per timestep for all blocks and features at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mmaselect.diffusion import FrozenDiT, TapKey
from mmaselect.images.labeled import LabeledImages
from mmaselect.images.views import ViewBoxes
from mmaselect.selection.scoring import (
    EncodedBatch,
    Reading,
    draw_readings,
    encode_views,
    view_readings,
)


@dataclass(frozen=True)
class FeatureBatch:
    """Feature maps of some images at one timestep.

    Attributes:
        draws: For each noise draw, (block, feature) to maps (B, C, h, w).
        labels: (B,) or (B, H, W), on the CPU.
        positions: Positions of the images in their set.
    """

    draws: list[dict[TapKey, Tensor]]
    labels: Tensor
    positions: list[int]


class EncodedImages:
    """Clean latents of labeled images, encoded once and kept in (CPU) memory.

    An image keeps its noise for all timesteps, as in a sweep: curves over timesteps then differ by
    the timestep and not by the draw.

    Args:
        dit: The frozen model.
        images: The images.
        batch_size: Images per pass.
        seed: Seed of the noise.
        first: Noise of the image at position i is that of number ``first + i``: gives two sets
            noise of their own.
        on_batch: Called with the number of images after each batch that was encoded.
    """

    def __init__(
        self,
        dit: FrozenDiT,
        images: LabeledImages,
        batch_size: int = 16,
        seed: int = 0,
        first: int = 0,
        on_batch: Callable[[int], None] | None = None,
    ) -> None:
        self.dit = dit
        self.images = images
        self.seed = seed
        self.first = first
        self._batches: list[tuple[Tensor, Tensor, list[int]]] = []
        # Latents of the views, and where they lie; empty for images without views.
        self._views: list[tuple[Tensor, ViewBoxes]] = []
        for batch in images.batches(batch_size):
            latent = dit.encode(batch.images.to(dit.device)).cpu()
            assert batch.labels is not None  # or `images` had raised an error
            # Label maps as bytes: in int64 they would outweigh the latents.
            labels = batch.labels if batch.labels.ndim == 1 else batch.labels.byte()
            self._batches.append((latent, labels, batch.indices))
            if batch.views is not None:
                self._views.append((encode_views(dit, batch.views).cpu(), batch.views.where))
            if on_batch:
                on_batch(len(batch.indices))

    def __len__(self) -> int:
        return len(self.images)

    @property
    def labels(self) -> Tensor:
        """Labels of all images: (N,), or (N, H, W), int64."""
        return torch.cat([labels for _, labels, _ in self._batches]).long()

    @property
    def num_tokens(self) -> int:
        """Image tokens of one image."""
        height, width = self.dit.family.grid(self._batches[0][0])
        return height * width

    def features(self, timestep: int, draws: int = 1) -> Iterator[FeatureBatch]:
        """Feature maps of all images at a timestep, a batch at a time.

        Args:
            timestep: 0 (clean) to T - 1 (noise).
            draws: Independent noise draws of each image.
        """
        for batch in self.batches(draws):
            maps = [
                self.dit.features(reading.latent, timestep, reading.noise)
                for reading in batch.draws
            ]
            assert batch.labels is not None  # see `batches`
            yield FeatureBatch(maps, batch.labels, batch.indices)

    def batches(self, draws: int = 1) -> Iterator[EncodedBatch]:
        """The latents on the model's device, with noise; the labels stay on the CPU.

        Args:
            draws: Independent noise draws of each image.
        """
        for number, (latent, labels, positions) in enumerate(self._batches):
            numbers = [self.first + position for position in positions]
            readings = draw_readings(latent.to(self.dit.device), numbers, draws, self.seed)
            views: tuple[Reading, ...] = ()
            where: ViewBoxes | None = None
            if self.images.views is not None:
                latents, where = self._views[number]
                noise = self.images.views.noise
                views = view_readings(latents.to(self.dit.device), numbers, self.seed, noise)
            yield EncodedBatch(readings, positions, labels.long(), views, where)
