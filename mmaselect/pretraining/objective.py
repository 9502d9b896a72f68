# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""What the network is asked to predict, and at which noise levels."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler, SchedulerMixin
from torch import Tensor

from mmaselect.checks import choice

NUM_TRAIN_TIMESTEPS = 1000
TARGETS = ('epsilon', 'v_prediction', 'flow')
SAMPLINGS = ('uniform', 'logit-normal')


class Objective:
    """Noise a clean sample and say what to predict.

    Args:
        target: Prediction target.

            - 'epsilon': the noise of a DDPM (arXiv 2006.11239).
            - 'v_prediction': ``alpha * noise - sigma * clean`` of a DDPM (arXiv 2202.00512).
            - 'flow': ``noise - clean`` on the straight path between them (arXiv 2210.02747).
        sampling: How a fraction u of the schedule is drawn (0 = clean, 1 = noise).

            - 'uniform': every u alike.
            - 'logit-normal': ``sigmoid(mean + std * normal)`` (arXiv 2403.03206).
        logit_mean: Mean of the logit-normal; negative favors little noise.
        logit_std: Standard deviation of the logit-normal.
        clip: Whether samples lie in [-1, 1], so that a DDPM sampler may clip them.

    Attributes:
        scheduler: The diffusers scheduler that belongs to the target; it goes into the pipeline.
    """

    def __init__(
        self,
        target: str = 'epsilon',
        sampling: str = 'uniform',
        logit_mean: float = 0.0,
        logit_std: float = 1.0,
        clip: bool = True,
    ) -> None:
        choice('target', target, TARGETS)
        choice('sampling', sampling, SAMPLINGS)
        self.target, self.sampling = target, sampling
        self.logit_mean, self.logit_std = logit_mean, logit_std
        self.scheduler: SchedulerMixin
        if target == 'flow':
            self.scheduler = FlowMatchEulerDiscreteScheduler(NUM_TRAIN_TIMESTEPS)
        else:
            self.scheduler = DDPMScheduler(
                NUM_TRAIN_TIMESTEPS, prediction_type=target, clip_sample=clip
            )

    @classmethod
    def from_pipeline(cls, folder: str | Path) -> Objective:
        """What a pipeline's network was trained on, by its scheduler.

        Args:
            folder: Folder (or hub id) of the pipeline.

        Raises:
            FileNotFoundError: If it has no ``scheduler/scheduler_config.json``.
            ValueError: If its network predicts none of the targets.
        """
        try:
            config = DDPMScheduler.load_config(str(folder), subfolder='scheduler')
        except OSError as error:
            raise FileNotFoundError(
                f'{folder} has no scheduler/scheduler_config.json: give a pipeline/ or snapshot/ '
                f'folder, or the hub id of a pipeline ({error})'
            ) from error
        flow = config['_class_name'] == 'FlowMatchEulerDiscreteScheduler'
        return cls('flow' if flow else config['prediction_type'])

    def draw_times(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw the fractions of the schedule: (B,), float32, 0 to 1."""
        device = generator.device
        if self.sampling == 'uniform':
            return torch.rand(count, generator=generator, device=device)
        normal = torch.randn(count, generator=generator, device=device)
        return torch.sigmoid(self.logit_mean + self.logit_std * normal)

    def add_noise(self, clean: Tensor, noise: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
        """Noise samples.

        Args:
            clean: (B, C, H, W).
            noise: (B, C, H, W), standard normal.
            times: (B,), fractions of the schedule.

        Returns:
            tuple[Tensor, Tensor]: The noisy samples (B, C, H, W), and the times (B,) as the network
            takes them: whole timesteps of a DDPM, floats from 0 to 1000 of flow matching.
        """
        if self.target == 'flow':
            sigma = times[:, None, None, None]
            return (1 - sigma) * clean + sigma * noise, times * NUM_TRAIN_TIMESTEPS
        steps = (times * NUM_TRAIN_TIMESTEPS).long().clamp(max=NUM_TRAIN_TIMESTEPS - 1)
        return self.scheduler.add_noise(clean, noise, steps), steps

    def expected_output(self, clean: Tensor, noise: Tensor, model_times: Tensor) -> Tensor:
        """What the network should put out: (B, C, H, W)."""
        if self.target == 'epsilon':
            return noise
        if self.target == 'v_prediction':
            return self.scheduler.get_velocity(clean, noise, model_times)
        return noise - clean

    def sampler(self) -> SchedulerMixin:
        """A scheduler that samples in few steps: DDIM, or the Euler steps of flow matching."""
        if self.target == 'flow':
            return FlowMatchEulerDiscreteScheduler.from_config(self.scheduler.config)
        # DDIM starts from its last timestep, which 'leading' spacing would leave out.
        return DDIMScheduler.from_config(self.scheduler.config, timestep_spacing='trailing')
