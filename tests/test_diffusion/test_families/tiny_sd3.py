# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""A pipeline of Stable Diffusion 3's true classes."""

import diffusers
from tiny_text import clip_encoder, clip_tokenizer, t5_encoder, t5_tokenizer
from tiny_vae import kl_vae


def save_sd3(folder, **config):
    config = {
        'sample_size': 8,
        'patch_size': 2,
        'in_channels': 16,
        'num_layers': 5,
        'attention_head_dim': 8,
        'num_attention_heads': 2,
        'joint_attention_dim': 32,
        'caption_projection_dim': 16,
        'pooled_projection_dim': 20,
        'pos_embed_max_size': 12,
        **config,
    }
    diffusers.StableDiffusion3Pipeline(
        transformer=diffusers.SD3Transformer2DModel(**config),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=kl_vae(),
        text_encoder=clip_encoder(16, projection=12, seed=3),
        tokenizer=clip_tokenizer(),
        text_encoder_2=clip_encoder(8, projection=8, seed=4),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=t5_encoder(32),
        tokenizer_3=t5_tokenizer(),
    ).save_pretrained(folder)
