# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Image size in pixels, for transformers that are told it.

A family sees latents only; how many pixels a latent pixel stands for is a fact of the pipeline's
VAE, and travels with the condition.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mmaselect.diffusion.loading import PipelineSource

_KEY = 'pixels_per_latent'


def pixel_condition(source: PipelineSource) -> dict[str, Tensor]:
    """Condition entry that :func:`image_size` reads: (1,), int64."""
    stride = 1
    if source.has_vae():
        stride = 2 ** (len(source.config('vae')['block_out_channels']) - 1)
    return {_KEY: torch.tensor([stride])}


def image_size(latent: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
    """Height and width in pixels of the images that a latent stands for.

    Args:
        latent: (B, C, h, w).
        condition: Holds what :func:`pixel_condition` gave, expanded to (B,).

    Returns:
        Tensor: (B, 2), (height, width), in the latent's dtype, as the pipelines hand it on.
    """
    # Not a tensor of the two sides, whose copy to the device would be waited for.
    size = torch.stack([condition[_KEY] * side for side in latent.shape[-2:]], dim=1)
    return size.to(latent.dtype)
