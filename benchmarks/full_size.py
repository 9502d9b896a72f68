# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Published models at full size, without weights: for tests and pages that count."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import diffusers
import torch

from mmaselect.diffusion import FrozenDiT, build_process, known_families
from mmaselect.diffusion.codec import codec_class
from mmaselect.diffusion.families.base import Family, Published

#: Configs of the VAEs, as far as they differ from the defaults of their classes.
_KL = dict(
    block_out_channels=(128, 256, 512, 512), layers_per_block=2,
    down_block_types=('DownEncoderBlock2D',) * 4, up_block_types=('UpDecoderBlock2D',) * 4,
)  # fmt: skip
_KL4, _KL16 = dict(_KL, latent_channels=4), dict(_KL, latent_channels=16)
_DC = dict(
    latent_channels=32, attention_head_dim=32,
    encoder_block_types=('ResBlock',) * 3 + ('EfficientViTBlock',) * 3,
    decoder_block_types=('ResBlock',) * 3 + ('EfficientViTBlock',) * 3,
    encoder_block_out_channels=(128, 256, 512, 512, 1024, 1024),
    decoder_block_out_channels=(128, 256, 512, 512, 1024, 1024),
    encoder_layers_per_block=(2, 2, 2, 3, 3, 3), decoder_layers_per_block=(3,) * 6,
    encoder_qkv_multiscales=((), (), (), (5,), (5,), (5,)),
    decoder_qkv_multiscales=((), (), (), (5,), (5,), (5,)),
)  # fmt: skip
_FLOW = dict(_class_name='FlowMatchEulerDiscreteScheduler')


@dataclass(frozen=True, eq=False)
class FullSize:
    """A published model: what its families' files do not say.

    Attributes:
        name: As ``pretrained`` takes it.
        native: Side of the images that it was trained on, in pixels.
        vae: Class of its VAE in diffusers.
        vae_config: Config of that.
        condition: Shape of each of its conditions: those of the empty prompt as our configs have
            it, or of a class.
        scheduler: Config of its scheduler.
        dtype: That of the published weights, or what fits them.
        heads: Our config of its UperNet; None where there is none.
    """

    name: str
    native: int
    vae: str
    vae_config: Mapping[str, Any]
    condition: Mapping[str, tuple[int, ...]]
    scheduler: Mapping[str, Any]
    dtype: torch.dtype = torch.float16
    heads: str | None = None

    @property
    def family(self) -> tuple[type[Family], Published]:
        """Its family, and its entry there."""
        return next(
            (family, model)
            for family in known_families().values()
            for model in family.published
            if model.name == self.name
        )


_CLIP = dict(prompt_embeds=(333, 4096), pooled_prompt_embeds=(2048,))
_BF16 = torch.bfloat16
MODELS = (
    FullSize(
        'facebook/DiT-XL-2-512', 512, 'AutoencoderKL', _KL4, dict(class_labels=()),
        dict(_class_name='DDPMScheduler'), heads='dit-xl2',
    ),
    FullSize(
        'stabilityai/stable-diffusion-3-medium-diffusers', 1024, 'AutoencoderKL', _KL16, _CLIP,
        _FLOW, heads='sd3-medium',
    ),
    FullSize(
        'stabilityai/stable-diffusion-3.5-medium', 1024, 'AutoencoderKL', _KL16, _CLIP, _FLOW,
        _BF16, heads='sd3-medium',
    ),
    FullSize(
        'stabilityai/stable-diffusion-3.5-large', 1024, 'AutoencoderKL', _KL16, _CLIP, _FLOW, _BF16,
    ),
    FullSize(
        'black-forest-labs/FLUX.1-dev', 512, 'AutoencoderKL', _KL16,
        dict(prompt_embeds=(512, 4096), pooled_prompt_embeds=(768,), guidance=()), _FLOW, _BF16,
        heads='flux1-dev',
    ),
    FullSize(
        'Efficient-Large-Model/Sana_1600M_1024px_diffusers', 1024, 'AutoencoderDC', _DC,
        dict(encoder_hidden_states=(300, 2304), encoder_attention_mask=(300,)), _FLOW, _BF16,
    ),
    FullSize(
        'Qwen/Qwen-Image', 512, 'AutoencoderKLQwenImage', {}, dict(prompt_embeds=(5, 3584)),
        _FLOW, _BF16,
    ),
)  # fmt: skip


def build(
    model: FullSize,
    device: str,
    blocks: Callable[[Family], Any] = lambda family: family.default_block,
    features: str | tuple[str, ...] = 'query',
) -> FrozenDiT:
    """A model as it is loaded: blocks up to the deepest that is read, with its codec.

    Args:
        model: The model.
        device: Where parameters are made.
        blocks: Gives the blocks that are read.
        features: Features that are read.
    """
    cls, published = model.family
    stock = getattr(diffusers, cls.transformer_class)
    with torch.device('meta'):
        config = dict(stock.from_config(dict(published.config)).config)
    family = cls(config)
    read = blocks(family)
    needed = max(read if isinstance(read, (list, tuple)) else [read]) + 1
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(model.dtype)
        with torch.device(device):
            transformer = stock.from_config({**config, **family.build_overrides(needed)}).eval()
            vae = getattr(diffusers, model.vae)(**model.vae_config)
    finally:
        torch.set_default_dtype(before)
    family.trim(transformer, needed)
    with torch.device(device):
        condition = {
            name: torch.zeros(1, *shape, dtype=_dtype_of(name, model.dtype))
            for name, shape in model.condition.items()
        }
    codec = codec_class(model.vae)(vae)
    process = build_process(dict(model.scheduler))
    dit = FrozenDiT(transformer, family, process, codec, condition, read, features)
    dit.name = model.name
    # Tables that a class makes on the CPU, in float32.
    for module in dit.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None:
                dtype = model.dtype if buffer.is_floating_point() else buffer.dtype
                module._buffers[name] = buffer.to(device, dtype)
    return dit


def _dtype_of(name: str, dtype: torch.dtype) -> torch.dtype:
    if name == 'class_labels':
        return torch.long
    return torch.bool if name.endswith('mask') else dtype
