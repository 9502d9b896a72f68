# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Autoencoders of the true classes, a few thousand parameters each."""

import torch
from diffusers import AutoencoderKL


def kl_vae(latent_channels=16, scale=1.5305, shift=0.0609, levels=3, seed=2):
    """Stride 2 ** (levels - 1); scale and shift of SD3's unless told otherwise."""
    torch.manual_seed(seed)
    vae = AutoencoderKL(
        block_out_channels=(4,) * levels,
        down_block_types=('DownEncoderBlock2D',) * levels,
        up_block_types=('UpDecoderBlock2D',) * levels,
        latent_channels=latent_channels,
        norm_num_groups=2,
        layers_per_block=1,
        scaling_factor=scale,
        shift_factor=shift,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    return vae.eval()
