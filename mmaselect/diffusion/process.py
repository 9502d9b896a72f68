# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""The forward (noising) process of a pipeline, read from its scheduler's config.

One convention for every family: a *timestep* is an index of the model's **unshifted** training
schedule, 0 = clean, ``T - 1`` = noise. What a transformer is told (``model_time``) and how much
signal and noise there is (``alpha``, ``sigma``) follow from it here, and only here.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import diffusers
import numpy as np
import torch
from torch import Tensor

from mmaselect.checks import is_whole_number, whole_number


@dataclass(frozen=True)
class NoiseLevel:
    """What a timestep means.

    Attributes:
        timestep: Index of the unshifted training schedule, 0 = clean.
        alpha: Scale of the clean latent in the noisy one.
        sigma: Standard deviation of the noise in the noisy latent.
        model_time: What the scheduler would hand to the transformer, in its own units (0 to T).
    """

    timestep: int
    alpha: float
    sigma: float
    model_time: float

    @property
    def log_snr(self) -> float:
        """``2 ln(alpha / sigma)``; infinite where there is no noise."""
        if self.sigma == 0:
            return math.inf
        if self.alpha == 0:
            return -math.inf
        return 2 * (math.log(self.alpha) - math.log(self.sigma))


class ForwardProcess(ABC):
    """``noisy = alpha(t) * latent + sigma(t) * noise``.

    Args:
        num_train_timesteps: Length T of the training schedule.
    """

    def __init__(self, num_train_timesteps: int) -> None:
        self.num_train_timesteps = whole_number('num_train_timesteps', num_train_timesteps, 1)

    def check_timestep(self, timestep: Any) -> int:
        """Return ``timestep`` as an int, or raise a ValueError that names the range."""
        if not is_whole_number(timestep):
            raise ValueError(f'timestep must be a whole number, got {timestep!r}')
        timestep = int(timestep)
        if not 0 <= timestep < self.num_train_timesteps:
            raise ValueError(
                f'timestep {timestep} is out of range: this model was trained with '
                f'{self.num_train_timesteps} timesteps, 0 (clean) to '
                f'{self.num_train_timesteps - 1} (noise)'
            )
        return timestep

    @abstractmethod
    def at(self, timestep: int, num_tokens: int | None = None) -> NoiseLevel:
        """The noise level of a timestep.

        Args:
            timestep: 0 (clean) to T - 1 (noise).
            num_tokens: Image tokens of one sample; only schedules with a resolution-dependent
                shift read it.

        Raises:
            ValueError: If the timestep is out of range.
        """

    def add_noise(self, latent: Tensor, noise: Tensor, level: NoiseLevel) -> Tensor:
        """Noise a clean latent: both tensors of the same shape, result in the latent's dtype."""
        return level.alpha * latent + level.sigma * noise


class DDPMProcess(ForwardProcess):
    """Variance-preserving diffusion: ``alpha^2 + sigma^2 = 1`` with alpha from the beta schedule.

    The betas are those of diffusers' own ``DDPMScheduler`` for this config, so every schedule that
    diffusers knows (linear, scaled linear, squared cosine, sigmoid, trained betas, zero terminal
    SNR) is right here too.

    Args:
        config: A scheduler config with ``beta_schedule`` (DDPM, DDIM, DPM-Solver, ... all have it).
    """

    #: The diffusers class that computes the schedule, and what its config takes for that.
    scheduler_class: ClassVar[str] = 'DDPMScheduler'
    schedule_keys: ClassVar[tuple[str, ...]] = (
        'num_train_timesteps',
        'beta_start',
        'beta_end',
        'beta_schedule',
        'trained_betas',
        'rescale_betas_zero_snr',
    )

    def __init__(self, config: Mapping[str, Any]) -> None:
        scheduler = getattr(diffusers, self.scheduler_class)(
            **{key: config[key] for key in self.schedule_keys if config.get(key) is not None}
        )
        super().__init__(scheduler.config.num_train_timesteps)
        self.alphas_cumprod = scheduler.alphas_cumprod

    def at(self, timestep: int, num_tokens: int | None = None) -> NoiseLevel:
        timestep = self.check_timestep(timestep)
        # In float32, as the scheduler's own add_noise does it: features are then equal bit for bit.
        signal = self.alphas_cumprod[timestep].float()
        alpha, sigma = (signal**0.5).item(), ((1 - signal) ** 0.5).item()
        return NoiseLevel(timestep, alpha, sigma, float(timestep))


class CogVideoXProcess(DDPMProcess):
    """The same with a signal-to-noise ratio that is divided by ``snr_shift_scale``."""

    scheduler_class = 'CogVideoXDDIMScheduler'
    schedule_keys = (*DDPMProcess.schedule_keys, 'snr_shift_scale')


class FlowMatchingProcess(ForwardProcess):
    """Rectified flow: ``(1 - sigma) * latent + sigma * noise``, sigma shifted towards noise.

    The unshifted sigma of timestep t is ``t / T`` (so that t = T - index into the scheduler's
    descending table); the scheduler's shift, static or dependent on the number of tokens, then
    gives the sigma that is used, and ``sigma * T`` is what the transformer is told. All of it is
    computed by ``FlowMatchEulerDiscreteScheduler``, in float32, and so equal to it bit for bit.

    Args:
        config: Config of a flow-matching scheduler.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config.get('num_train_timesteps', 1000))
        # DPM-Solver and UniPC name the same number `flow_shift`.
        self.shift = float(config.get('flow_shift') or config.get('shift') or 1.0)
        self.dynamic = bool(config.get('use_dynamic_shifting', False))
        self.base_shift = config.get('base_shift') or 0.5
        self.max_shift = config.get('max_shift') or 1.15
        self.base_tokens = config.get('base_image_seq_len') or 256
        self.max_tokens = config.get('max_image_seq_len') or 4096
        self.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(
            num_train_timesteps=self.num_train_timesteps,
            shift=self.shift,
            use_dynamic_shifting=self.dynamic,
            time_shift_type=config.get('time_shift_type') or 'exponential',
        )

    def mu(self, num_tokens: int) -> float:
        """How far the noise levels of an image of so many tokens are shifted."""
        slope = (self.max_shift - self.base_shift) / (self.max_tokens - self.base_tokens)
        # In the order in which the pipelines' `calculate_shift` adds: the last bit depends on it.
        return num_tokens * slope + (self.base_shift - slope * self.base_tokens)

    def sigma(self, timestep: int, num_tokens: int) -> np.floating[Any]:
        """The shifted sigma of a timestep."""
        if timestep == 0:
            return np.float32(0)
        if not self.dynamic:
            return self.scheduler.sigmas[self.num_train_timesteps - timestep].numpy()[()]
        unshifted = np.array([timestep / self.num_train_timesteps]).astype(np.float32)
        return self.scheduler.time_shift(self.mu(num_tokens), 1.0, unshifted)[0]

    def model_time(self, sigma: np.floating[Any]) -> float:
        """What the scheduler hands to the transformer."""
        return float(sigma * np.float32(self.num_train_timesteps))

    def at(self, timestep: int, num_tokens: int | None = None) -> NoiseLevel:
        timestep = self.check_timestep(timestep)
        if self.dynamic and num_tokens is None:
            raise ValueError(
                'this scheduler shifts its noise levels by the image size '
                '(use_dynamic_shifting=True): pass num_tokens, the number of image tokens'
            )
        sigma = self.sigma(timestep, num_tokens or 0)
        single = np.float32(sigma)
        return NoiseLevel(
            timestep, float(np.float32(1) - single), float(single), self.model_time(sigma)
        )


class FlowSolverProcess(FlowMatchingProcess):
    """The flow of DPM-Solver, UniPC and their like: time is cut down to a whole number.

    They compute sigma in float64 and round it afterwards.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        # u = t / T as each of them rounds it, by t.
        steps = np.linspace(1, 1 / self.num_train_timesteps, self.num_train_timesteps)
        if config.get('_class_name') == 'UniPCMultistepScheduler':
            self.unshifted = np.append(0, steps[:0:-1])
        else:
            self.unshifted = 1 - steps

    def sigma(self, timestep: int, num_tokens: int) -> np.floating[Any]:
        shift = math.exp(self.mu(num_tokens)) if self.dynamic else self.shift
        unshifted = self.unshifted[timestep]
        return shift * unshifted / (1 + (shift - 1) * unshifted)

    def model_time(self, sigma: np.floating[Any]) -> float:
        return float(int(sigma * self.num_train_timesteps))


# Schedulers whose forward process each of ours is. A class of another name may compute its noise
# levels in a way of its own, whatever its config holds, and is not guessed at.
_FLOWS = (
    'FlowMatchEulerDiscreteScheduler',
    'FlowMatchHeunDiscreteScheduler',
    'FlowMatchLCMScheduler',
)
_SOLVERS = (
    'DEISMultistepScheduler',
    'DPMSolverMultistepScheduler',
    'DPMSolverSinglestepScheduler',
    'SASolverScheduler',
    'UniPCMultistepScheduler',
)
_DDPMS = (
    'DDIMInverseScheduler',
    'DDIMParallelScheduler',
    'DDIMScheduler',
    'DDPMParallelScheduler',
    'DDPMScheduler',
    'DPMSolverMultistepInverseScheduler',
    'DPMSolverSDEScheduler',
    'EulerAncestralDiscreteScheduler',
    'EulerDiscreteScheduler',
    'HeunDiscreteScheduler',
    'KDPM2AncestralDiscreteScheduler',
    'KDPM2DiscreteScheduler',
    'LCMScheduler',
    'LMSDiscreteScheduler',
    'PNDMScheduler',
    'TCDScheduler',
)
_COGVIDEOX = ('CogVideoXDDIMScheduler', 'CogVideoXDPMScheduler')


def build_process(config: Mapping[str, Any]) -> ForwardProcess:
    """Forward process of a scheduler config (the content of ``scheduler_config.json``).

    Only what the model was trained with is read. How a sampler spends its steps is not a part of
    it: ``use_karras_sigmas``, ``use_exponential_sigmas``, ``use_beta_sigmas``, ``use_lu_lambdas``,
    ``invert_sigmas``, ``shift_terminal``, ``timestep_spacing`` and ``steps_offset`` make no
    difference here.

    Raises:
        ValueError: If no process is known to be that of the scheduler's class.
    """
    name = str(config.get('_class_name', ''))
    if name in _FLOWS:
        return FlowMatchingProcess(config)
    if name in _SOLVERS and (
        config.get('use_flow_sigmas') or config.get('prediction_type') == 'flow_prediction'
    ):
        return FlowSolverProcess(config)
    if name in _DDPMS or name in _SOLVERS:
        return DDPMProcess(config)
    if name in _COGVIDEOX:
        return CogVideoXProcess(config)
    raise ValueError(
        f'scheduler {name!r} is not supported: how it makes noisy latents is unknown. Supported: '
        f'{", ".join(sorted((*_FLOWS, *_SOLVERS, *_DDPMS, *_COGVIDEOX)))}. If the model was '
        f'trained with the noise levels of one of them, name that one in '
        f'scheduler/scheduler_config.json of a copy of the pipeline'
    )


#: Bounds of :func:`noise_seed`'s arguments.
MAX_SEED, MAX_SAMPLES, MAX_DRAWS = 2**32, 2**20, 4096
#: Noise draws of a sample that follow each other in the numbering of seeds.
_DRAWS_TOGETHER = 64
#: Seeds of the user are so many samples apart; odd, so that they do not meet.
_SAMPLES_APART = 1_000_003


def noise_seed(seed: int, sample: int = 0, draw: int = 0) -> int:
    """The package's one rule for seeds of noise.

    PyTorch's generator for CPUs has 2^32 states to start from, and uses the lowest 32 bits of its
    seed alone. For one ``seed``, each (sample, draw) has a state of its own; so have the draws of
    one sample for all seeds below 2^20.

    Args:
        seed: What the user calls the seed, 0 to 2^32 - 1.
        sample: Number of the image in its set, up to 2^20 - 1; 0 where all images share a draw.
        draw: Number of the noise draw, up to 4,095.

    Returns:
        int: A seed for :func:`draw_noise`, below 2^32.

    Raises:
        ValueError: If an argument is out of range.
    """
    given = (('seed', seed, MAX_SEED), ('sample', sample, MAX_SAMPLES), ('draw', draw, MAX_DRAWS))
    for name, value, bound in given:
        if not 0 <= value < bound:
            raise ValueError(f'the {name} of a noise draw must be 0 to {bound - 1}, got {value}')
    together, place = divmod(draw, _DRAWS_TOGETHER)
    row = together * MAX_SAMPLES + seed * _SAMPLES_APART + sample
    return (row * _DRAWS_TOGETHER + place) % 2**32


def draw_noise(shape: tuple[int, ...], seeds: list[int], device: Any = None) -> Tensor:
    """Standard normal noise of which sample i depends on ``seeds[i]`` and ``shape`` alone.

    Drawn on the CPU in float32 whatever the device, so that the same image gets the same noise in
    any batch, order, rank and on any hardware.

    Args:
        shape: Shape (C, H, W) of one sample.
        seeds: One seed per sample.
        device: Where the result goes.

    Returns:
        Tensor: (len(seeds), C, H, W), float32.
    """
    noise = torch.stack(
        [
            torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)
            for seed in seeds
        ]
    )
    return noise.to(device) if device is not None else noise
