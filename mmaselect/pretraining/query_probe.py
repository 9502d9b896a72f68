# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Linear probe of pooled queries: how much a DiT's features tell of the class, while it trains."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from mmaselect.pretraining.clean import LatentSource, PixelSource
from mmaselect.pretraining.images import ImageSet
from mmaselect.pretraining.objective import NUM_TRAIN_TIMESTEPS, Objective


@dataclass(frozen=True)
class ProbeImages:
    """Labelled samples of a probe.

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
        vae: nn.Module | None = None,
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
        """
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
        """Fit a logistic regression on standardized features (N, C); accuracy on the others.

        Args:
            features: (N, C), in the order of the images.
            inverse_penalty: C of scikit-learn's ``LogisticRegression``.
        """
        try:
            from sklearn.linear_model import LogisticRegression
            from sklearn.pipeline import make_pipeline
            from sklearn.preprocessing import StandardScaler
        except ImportError as error:
            raise ImportError('a probe needs scikit-learn: pip install scikit-learn') from error
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=inverse_penalty, max_iter=500))
        n = self.num_fit
        probe.fit(features[:n], self.labels[:n])
        return float(probe.score(features[n:], self.labels[n:]))


@torch.no_grad()
def pooled_queries(
    model: nn.Module,
    objective: Objective,
    images: ProbeImages,
    blocks: Sequence[int],
    timestep: int,
    device: torch.device,
    batch_size: int = 250,
) -> dict[int, np.ndarray]:
    """Mean over the tokens of ``attn1.to_q``, null class, one fixed draw of noise.

    Args:
        model: A ``DiTTransformer2DModel`` in eval mode.
        objective: Says how a timestep noises a sample.
        images: The samples.
        blocks: Which blocks to read.
        timestep: 0 (clean) to 999 (noise).
        device: Where the model is.
        batch_size: Samples in one pass.

    Returns:
        dict[int, ndarray]: For each block (N, C), float32.
    """
    pooled: dict[int, list[Tensor]] = {block: [] for block in blocks}
    generator = torch.Generator(device).manual_seed(0)

    def keep(block: int):
        def hook(module: nn.Module, inputs: tuple, output: Tensor) -> None:
            pooled[block].append(output.float().mean(1).cpu())

        return hook

    with ExitStack() as hooks:
        for block in blocks:
            query = model.transformer_blocks[block].attn1.to_q
            hooks.callback(query.register_forward_hook(keep(block)).remove)
        for index in torch.arange(len(images.labels)).split(batch_size):
            unflipped = torch.zeros(len(index), dtype=torch.bool, device=device)
            samples = images.source(index, unflipped, generator)
            noise = torch.randn(samples.shape, generator=generator, device=device)
            # The half keeps a float fraction on the right side of the whole timestep.
            fraction = timestep if objective.target == 'flow' else timestep + 0.5
            times = torch.full((len(index),), fraction / NUM_TRAIN_TIMESTEPS, device=device)
            noisy, told = objective.add_noise(samples, noise, times)
            null = torch.full((len(index),), model.config.num_embeds_ada_norm, device=device)
            model(noisy, timestep=told, class_labels=null)
    return {block: torch.cat(parts).numpy() for block, parts in pooled.items()}


def probe_table(
    model: nn.Module,
    objective: Objective,
    images: ProbeImages,
    blocks: Sequence[int],
    timesteps: Sequence[int],
    device: torch.device,
) -> dict[str, float]:
    """Accuracy of a probe on each block at each timestep, keyed ``'block@timestep'``."""
    table = {}
    for timestep in timesteps:
        queries = pooled_queries(model, objective, images, blocks, timestep, device)
        for block, features in queries.items():
            table[f'{block}@{timestep}'] = round(images.accuracy(features), 4)
    return table
