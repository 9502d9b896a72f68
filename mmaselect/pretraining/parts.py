# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""What a run is made of: its options, and the parts that were built for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from diffusers import DiTTransformer2DModel, ModelMixin
from torch import Tensor
from torch.optim import Optimizer

from mmaselect.pretraining.clean import LatentSource, PixelSource
from mmaselect.pretraining.objective import Objective
from mmaselect.pretraining.query_probe import ProbeImages
from mmaselect.pretraining.run_folder import RunFolder
from mmaselect.pretraining.tokens import TokenDrop


@dataclass(frozen=True)
class TrainOptions:
    """How to train; the defaults are those of ``tools/pretrain_dit.py``.

    Intervals are in steps; 0 switches a thing off.

    Attributes:
        steps: Steps of the whole run.
        batch: Images of one step, over all processes.
        accumulate: Parts that a process cuts its share of a batch into, to save memory.
        label_dropout: Share of the labels that become the null class.
        flip: Mirror half of the images.
        grad_clip: Largest norm of the gradient.
        ema_decay: Largest decay of the averaged weights.
        seed: Seed of the weights, the data order and all noise.
        log_every: Interval of the log.
        save_every: Interval of the checkpoints.
        sample_every: Interval of the sample grids.
        sample_steps: Denoising steps of a sample.
        probe_every: Interval of the linear probe.
        probe_blocks: Blocks that it reads; None for every second one.
        probe_timesteps: Timesteps that it reads them at.
        max_minutes: Save and stop after so long; None for no limit.
    """

    steps: int = 100_000
    batch: int = 256
    accumulate: int = 1
    label_dropout: float = 0.1
    flip: bool = True
    grad_clip: float = 1.0
    ema_decay: float = 0.9999
    seed: int = 0
    log_every: int = 20
    save_every: int = 1000
    sample_every: int = 5000
    sample_steps: int = 50
    probe_every: int = 0
    probe_blocks: Sequence[int] | None = None
    probe_timesteps: Sequence[int] = (25, 100)
    max_minutes: float | None = None


@dataclass(frozen=True)
class TrainParts:
    """What is trained, on what, and where it is written.

    Attributes:
        model: The transformer, with the weights to start from.
        optimizers: Optimizers of all its parameters.
        schedule: Factor of the learning rates, by step.
        objective: What to predict.
        token_drop: Hooked to ``model``.
        clean: Clean samples.
        labels: (N,), their classes.
        classes: Class names; empty for a set without.
        folder: Where everything is written.
        vae: Vae of the latents, if any.
        probe_images: For the linear probe.
    """

    model: DiTTransformer2DModel
    optimizers: Sequence[Optimizer]
    schedule: Callable[[int], float]
    objective: Objective
    token_drop: TokenDrop
    clean: PixelSource | LatentSource
    labels: Tensor
    classes: Sequence[str]
    folder: RunFolder
    vae: ModelMixin | None = None
    probe_images: ProbeImages | None = None

    @property
    def null(self) -> int:
        """The label of the null class."""
        return self.model.config.num_embeds_ada_norm
