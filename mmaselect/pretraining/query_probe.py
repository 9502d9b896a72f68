# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Linear probe of pooled queries: how much a DiT's features tell of the class, while it trains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import DiTTransformer2DModel, ModelMixin
from torch import Tensor

from mmaselect.diffusion import FrozenDiT, build_process
from mmaselect.diffusion.codec import PixelCodec
from mmaselect.diffusion.families.dit import DiTFamily
from mmaselect.pretraining.clean import LatentSource, PixelSource
from mmaselect.pretraining.images import ImageSet
from mmaselect.pretraining.objective import Objective


@dataclass(frozen=True)
class ProbeImages:
    """Labeled samples of a probe.

    Attributes:
        pixels: (N, 3, S, S), uint8: first those that the probe is fitted on, then the others.
        source: The same as clean samples of the model.
        labels: (N,), int64.
        num_fit: How many the probe is fitted on.
    """

    pixels: Tensor
    source: PixelSource | LatentSource
    labels: np.ndarray
    num_fit: int

    @classmethod
    def draw(
        cls,
        fit: ImageSet,
        test: ImageSet,
        num_fit: int,
        num_test: int,
        vae: ModelMixin | None = None,
    ) -> ProbeImages:
        """Draw a fixed part of two sets (all, where a set is smaller).

        Args:
            fit: The probe is fitted on images of these.
            test: And scored on images of these.
            num_fit: How many of the first.
            num_test: How many of the second.
            vae: Encodes them, where the model works on latents.

        Raises:
            ValueError: If the sets have no classes, or not the same ones.
            ImportError: If scikit-learn is not installed, which a probe will need.
        """
        import mmaselect.analysis  # noqa: F401  # said now, and not at the first probe

        if not fit.classes or fit.classes != test.classes:
            raise ValueError(
                'a probe needs class folders of the same names in both folders; got '
                f'{list(fit.classes)} to fit on, {list(test.classes)} to test on'
            )
        generator = torch.Generator().manual_seed(0)
        images, labels = [], []
        for part, count in ((fit, num_fit), (test, num_test)):
            index = torch.randperm(len(part), generator=generator)[:count]
            images.append(part.images[index.to(part.images.device)].cpu())
            labels.append(part.labels[index])
        pixels = torch.cat(images)
        source: PixelSource | LatentSource = PixelSource(pixels)
        if vae is not None:
            source = LatentSource(vae, pixels, vae.device, mirror=False)
        return cls(pixels, source, torch.cat(labels).numpy(), len(images[0]))

    def accuracy(self, features: np.ndarray, inverse_penalty: float = 0.1) -> float:
        """Fit a linear probe on standardized features (N, C); its accuracy on the others, 0 to 1.

        Args:
            features: (N, C), in the order of the images.
            inverse_penalty: C of scikit-learn's ``LogisticRegression``. It is given and not chosen
                on held-out samples, so that the numbers of a run differ by the network alone.

        Raises:
            ImportError: If scikit-learn is not installed.
        """
        from mmaselect.analysis.linear_probe import ProbeOptions, fit_probe

        options = ProbeOptions(strengths=(inverse_penalty,), holdout=0)
        fit, test = np.split(features, [self.num_fit])
        fit_labels, test_labels = np.split(self.labels, [self.num_fit])
        probe = fit_probe(fit, fit_labels, int(self.labels.max()) + 1, options, tolerance=1e-4)
        return float((probe.predict(test) == test_labels).mean())


def as_frozen(
    model: DiTTransformer2DModel, objective: Objective, blocks: Sequence[int]
) -> FrozenDiT:
    """A network that is being trained, read as a finished one is: queries, null class, float32.

    Args:
        model: The network; it is put in eval mode, and its weights stop requiring gradients.
        objective: Objective of the training.
        blocks: Which blocks to read.
    """
    family = DiTFamily(model.config)
    scheduler = objective.scheduler
    config = {**scheduler.config, '_class_name': type(scheduler).__name__}
    null = {'class_labels': torch.tensor([family.num_classes])}
    # Samples come as the network takes them, pixels or latents: nothing is left to encode.
    codec = PixelCodec()
    dit = FrozenDiT(model, family, build_process(config), codec, null, blocks, 'query')
    return dit.to(model.device)


def pooled_queries(
    dit: FrozenDiT, images: ProbeImages, timestep: int, batch_size: int = 250
) -> dict[int, np.ndarray]:
    """Mean over the tokens of the queries, one fixed draw of noise.

    Args:
        dit: Dit of which queries are read.
        images: The samples.
        timestep: 0 (clean) to 999 (noise).
        batch_size: Samples in one pass.

    Returns:
        dict[int, ndarray]: For each block (N, C), float32.
    """
    pooled: dict[int, list[Tensor]] = {block: [] for block in dit.blocks}
    generator = torch.Generator(dit.device).manual_seed(0)
    for index in torch.arange(len(images.labels)).split(batch_size):
        unflipped = torch.zeros(len(index), dtype=torch.bool, device=dit.device)
        samples = images.source(index, unflipped, generator)
        noise = torch.randn(samples.shape, generator=generator, device=dit.device)
        for (block, _), maps in dit.features(samples, timestep, noise).items():
            pooled[block].append(maps.float().mean((2, 3)).cpu())
    return {block: torch.cat(parts).numpy() for block, parts in pooled.items()}


def probe_table(dit: FrozenDiT, images: ProbeImages, timesteps: Sequence[int]) -> dict[str, float]:
    """Accuracy of a probe on each block at each timestep, keyed ``'block@timestep'``."""
    table = {}
    for timestep in timesteps:
        for block, features in pooled_queries(dit, images, timestep).items():
            table[f'{block}@{timestep}'] = round(images.accuracy(features), 4)
    return table
