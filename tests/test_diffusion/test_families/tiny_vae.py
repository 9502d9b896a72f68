# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Autoencoders of the true classes, a few thousand parameters each."""

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    AutoencoderKLQwenImage21,
    AutoencoderKLWan,
)


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


def qwen_image_vae(seed=2):
    """Stride 8, 4 channels; encodes clips."""
    torch.manual_seed(seed)
    return AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.1, -0.2, 0.3, 0.4],
        latents_std=[0.9, 1.1, 0.8, 1.3],
    ).eval()


def qwen_image21_vae(seed=2):
    """Stride 16, 4 channels; encodes clips of four channels."""
    torch.manual_seed(seed)
    return AutoencoderKLQwenImage21(
        base_dim=8,
        decoder_base_dim=8,
        z_dim=4,
        dim_mult=[1, 1, 1, 1, 1],
        num_res_blocks=1,
        latents_mean=[0.1, -0.2, 0.3, 0.4],
        latents_std=[0.9, 1.1, 0.8, 1.3],
    ).eval()


def wan_vae(seed=2, **options):
    """Stride 8, 4 channels; encodes clips."""
    torch.manual_seed(seed)
    return AutoencoderKLWan(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.1, -0.2, 0.3, 0.4],
        latents_std=[0.9, 1.1, 0.8, 1.3],
        **options,
    ).eval()


def wan_latent(pipeline, images):
    """Clean latent (B, C, h, w) of images as pipelines take it from this VAE."""
    latent = pipeline.vae.encode(images[:, :, None]).latent_dist.mode()[:, :, 0]
    mean = torch.tensor(pipeline.vae.config.latents_mean).view(1, -1, 1, 1)
    std = 1.0 / torch.tensor(pipeline.vae.config.latents_std).view(1, -1, 1, 1)
    return (latent - mean) * std


def flux2_vae(seed=2):
    """Stride 8 with its packing of 2x2, 16 channels."""
    torch.manual_seed(seed)
    vae = AutoencoderKLFlux2(
        down_block_types=('DownEncoderBlock2D',) * 3,
        up_block_types=('UpDecoderBlock2D',) * 3,
        block_out_channels=(4, 4, 4),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=2,
    )
    vae.bn.running_mean.normal_()
    vae.bn.running_var.uniform_(0.5, 2)
    return vae.eval()
