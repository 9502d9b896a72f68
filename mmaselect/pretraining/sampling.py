# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Grids of samples, to see what a model has learned."""

from __future__ import annotations

import numpy as np
import torch
from diffusers import DiTTransformer2DModel, ModelMixin
from PIL import Image
from torch import Tensor

from mmaselect.pretraining.objective import Objective


@torch.no_grad()
def sample_images(
    model: DiTTransformer2DModel,
    objective: Objective,
    labels: Tensor,
    vae: ModelMixin | None = None,
    steps: int = 50,
    seed: int = 0,
) -> Tensor:
    """Sample without guidance.

    Args:
        model: The network, in eval mode.
        objective: What the model was trained on.
        labels: (B,), class of each sample; the number of classes is the null class.
        vae: Decodes the samples, where the model works on latents.
        steps: Denoising steps.
        seed: Seed of the starting noise; drawn on the CPU, so equal on every device.

    Returns:
        Tensor: (B, 3, H, W), uint8, on the CPU.
    """
    device = next(model.parameters()).device
    shape = (len(labels), model.config.in_channels, *[model.config.sample_size] * 2)
    generator = torch.Generator().manual_seed(seed)
    samples = torch.randn(shape, generator=generator).to(device)
    sampler = objective.sampler()
    sampler.set_timesteps(steps, device=device)
    labels = labels.to(device)
    for time in sampler.timesteps:
        output = model(samples, timestep=time.expand(len(labels)), class_labels=labels).sample
        samples = sampler.step(output.float(), time, samples).prev_sample
    if vae is not None:
        scaled = samples.to(vae.dtype) / vae.config.scaling_factor
        samples = torch.cat([vae.decode(part).sample.float() for part in scaled.split(8)])
    return ((samples.clamp(-1, 1) + 1) * 127.5).round().byte().cpu()


def image_grid(images: Tensor, columns: int) -> Image.Image:
    """Lay (B, 3, H, W) uint8 images out, row by row.

    Raises:
        ValueError: If the images do not fill the last row.
    """
    if len(images) % columns:
        raise ValueError(f'{len(images)} images do not fill rows of {columns}')
    rows = len(images) // columns
    _, channels, height, width = images.shape
    grid = images.reshape(rows, columns, channels, height, width).permute(0, 3, 1, 4, 2)
    pixels = grid.reshape(rows * height, columns * width, channels).numpy()
    return Image.fromarray(np.ascontiguousarray(pixels))
