# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""A DiT pipeline folder of the true classes, small enough for a test."""

from pathlib import Path

import diffusers
import torch


def randomize(module: torch.nn.Module, std: float = 0.05) -> torch.nn.Module:
    """Random weights everywhere: adaLN-zero starts with gates of 0, which would hide mistakes."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
    return module.eval()


def save_tiny_dit(folder: Path, latent: bool, num_layers: int = 6, seed_std: float = 0.05) -> Path:
    """A DiT pipeline folder of the true classes, small enough for a test.

    Args:
        folder: Where to write.
        latent: With a VAE (token stride 4), or in pixel space (token stride 4).
        num_layers: Blocks.
        seed_std: Scale of the random weights.
    """
    transformer = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4 if latent else 3,
        out_channels=8 if latent else 3,
        num_layers=num_layers,
        sample_size=16 if latent else 32,
        patch_size=2 if latent else 4,
        num_embeds_ada_norm=10,
    )
    randomize(transformer, seed_std).save_pretrained(folder / 'transformer')
    diffusers.DDPMScheduler(beta_schedule='linear').save_pretrained(folder / 'scheduler')
    if latent:
        vae = diffusers.AutoencoderKL(
            block_out_channels=(8, 8),
            down_block_types=['DownEncoderBlock2D'] * 2,
            up_block_types=['UpDecoderBlock2D'] * 2,
            latent_channels=4,
            norm_num_groups=2,
            scaling_factor=0.5,
        )
        randomize(vae, 0.2).save_pretrained(folder / 'vae')
    return folder
