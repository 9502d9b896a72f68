# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""From images in [-1, 1] to the clean latent that a transformer was trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from diffusers import ModelMixin


class PixelCodec(nn.Module):
    """No VAE: the model works on the pixels themselves.

    Attributes:
        stride (int): Pixels per latent pixel, along each side.
    """

    stride = 1
    #: Channels of its latents.
    channels = 3

    def forward(self, images: Tensor) -> Tensor:
        """Return (B, 3, H, W) images in [-1, 1] as they are."""
        return images


class KLCodec(nn.Module):
    """The encoder half of an ``AutoencoderKL``.

    The latent is the posterior's mode, not a draw: the same image always gives the same latent.
    ``(z - shift) * scale``, where either may be absent from the VAE's config.

    Args:
        vae: A diffusers autoencoder; its decoder is dropped.
    """

    def __init__(self, vae: ModelMixin) -> None:
        super().__init__()
        # A third to a half of a VAE, never called here. An Identity, as some encoders look at it.
        for name in ('decoder', 'post_quant_conv'):
            if getattr(vae, name, None) is not None:
                setattr(vae, name, nn.Identity())
        self.vae = vae
        self.scale = float(vae.config.get('scaling_factor') or 1.0)
        self.shift = float(vae.config.get('shift_factor') or 0.0)
        self.stride = self._stride()

    @property
    def channels(self) -> int:
        """Channels of its latents."""
        config = self.vae.config
        return int(config.get('latent_channels') or config.z_dim)

    def _stride(self) -> int:
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    def _encode(self, images: Tensor) -> Tensor:
        return self.vae.encode(images).latent_dist.mode()

    def forward(self, images: Tensor) -> Tensor:
        """Encode (B, 3, H, W) images in [-1, 1]; H and W are multiples of ``stride``.

        Returns:
            Tensor: (B, C, H / stride, W / stride), float32.
        """
        return self._normalize(self._encode(images.to(self.vae.dtype)).float())

    def _normalize(self, latent: Tensor) -> Tensor:
        return (latent - self.shift) * self.scale


class TinyCodec(KLCodec):
    """``AutoencoderTiny`` (TAESD): encodes to the scaled latent space of its big brother."""

    def _encode(self, images: Tensor) -> Tensor:
        return self.vae.encode(images).latents


class DCCodec(KLCodec):
    """``AutoencoderDC`` (Sana): a deterministic autoencoder with a stride of 32."""

    def _stride(self) -> int:
        return 2 ** (len(self.vae.config.encoder_block_out_channels) - 1)

    def _encode(self, images: Tensor) -> Tensor:
        return self.vae.encode(images).latent


class StandardizedCodec(KLCodec):
    """An ``AutoencoderKL`` whose config states a mean and a standard deviation for each channel."""

    latents_mean: Tensor
    latents_std: Tensor

    def __init__(self, vae: ModelMixin) -> None:
        super().__init__(vae)
        for name in ('latents_mean', 'latents_std'):
            value = torch.tensor(vae.config[name], dtype=torch.float32).view(1, -1, 1, 1)
            self.register_buffer(name, value, persistent=False)

    def _normalize(self, latent: Tensor) -> Tensor:
        return (latent - self.latents_mean) / self.latents_std


class QwenImageCodec(StandardizedCodec):
    """``AutoencoderKLQwenImage``: encodes clips, of which an image is one with a single frame."""

    def _stride(self) -> int:
        return 2 ** len(self.vae.config.temperal_downsample)

    def _encode(self, images: Tensor) -> Tensor:
        return self.vae.encode(images.unsqueeze(2)).latent_dist.mode().squeeze(2)

    def _normalize(self, latent: Tensor) -> Tensor:
        # Times the reciprocal, as the pipelines have it: equal bit for bit.
        return (latent - self.latents_mean) * (1.0 / self.latents_std)


class QwenImage21Codec(QwenImageCodec):
    """``AutoencoderKLQwenImage21``: a fourth channel, of opacity, and a stride of 16."""

    def _stride(self) -> int:
        return int(self.vae.config.scale_factor_spatial)

    def _encode(self, images: Tensor) -> Tensor:
        # Opaque, as the pipeline has images without that channel.
        return super()._encode(torch.cat([images, torch.ones_like(images[:, :1])], dim=1))

    def _normalize(self, latent: Tensor) -> Tensor:
        return (latent - self.latents_mean) / self.latents_std


class WanCodec(QwenImageCodec):
    """``AutoencoderKLWan``: the same of Wan 2.1, and with a stride of 16 of Wan 2.2."""

    def _stride(self) -> int:
        return int(self.vae.config.scale_factor_spatial)


class HunyuanVideoCodec(KLCodec):
    """``AutoencoderKLHunyuanVideo``: encodes clips, of which an image is one of one frame."""

    def _stride(self) -> int:
        return int(self.vae.config.spatial_compression_ratio)

    def _encode(self, images: Tensor) -> Tensor:
        return self.vae.encode(images.unsqueeze(2)).latent_dist.mode().squeeze(2)


class HunyuanImageCodec(KLCodec):
    """``AutoencoderKLHunyuanImage``: stages that do not halve the image, too; a stride of 32."""

    def _stride(self) -> int:
        return int(self.vae.config.spatial_compression_ratio)


class Flux2Codec(KLCodec):
    """``AutoencoderKLFlux2``: 2x2 patches become channels, and batch-norm statistics scale them.

    Packing is thus the codec's part: latents have 4 times the VAE's channels.

    Attributes:
        eps (float): Epsilon of the batch norm.
        pixel_first (bool): Whether the VAE's channels of one pixel follow each other in the packed
            latent (and in its statistics), and not the pixels of one of these channels.
    """

    def __init__(self, vae: ModelMixin) -> None:
        super().__init__(vae)
        self.eps = float(vae.config.batch_norm_eps)
        self.pixel_first = False

    @property
    def channels(self) -> int:
        return super().channels * self._patch**2

    def _stride(self) -> int:
        return super()._stride() * self._patch

    @property
    def _patch(self) -> int:
        return self.vae.config.patch_size[0]

    def _normalize(self, latent: Tensor) -> Tensor:
        if self.pixel_first:
            # B C h 2 w 2
            patches = latent.unflatten(3, (-1, self._patch)).unflatten(2, (-1, self._patch))
            latent = patches.permute(0, 3, 5, 1, 2, 4).flatten(1, 3)
        else:
            latent = nn.functional.pixel_unshuffle(latent, self._patch)
        mean, std = self._statistics()
        return (latent - mean) / std

    def _statistics(self) -> tuple[Tensor, Tensor]:
        norm = self.vae.bn
        mean, var = (x.float().view(1, -1, 1, 1) for x in (norm.running_mean, norm.running_var))
        return mean, torch.sqrt(var + self.eps)


class UnpackedFlux2Codec(Flux2Codec):
    """The same with latents that are put back in the VAE's own shape after they were scaled."""

    @property
    def channels(self) -> int:
        return super().channels // self._patch**2

    def _stride(self) -> int:
        return super()._stride() // self._patch

    def _normalize(self, latent: Tensor) -> Tensor:
        mean, std = self._statistics()
        # Times the reciprocal, as the pipeline has it: equal bit for bit.
        latent = (nn.functional.pixel_unshuffle(latent, self._patch) - mean) * (1 / std)
        return nn.functional.pixel_shuffle(latent, self._patch)


#: What turns images into latents.
Codec = PixelCodec | KLCodec

#: VAE class, as its config names it, to the codec that knows how to call it.
CODECS: dict[str, type[KLCodec]] = {
    'AutoencoderKL': KLCodec,
    'AutoencoderTiny': TinyCodec,
    'AutoencoderDC': DCCodec,
    'AutoencoderKLQwenImage': QwenImageCodec,
    'AutoencoderKLQwenImage21': QwenImage21Codec,
    'AutoencoderKLWan': WanCodec,
    'AutoencoderKLFlux2': Flux2Codec,
    'AutoencoderKLHunyuanImage': HunyuanImageCodec,
    'AutoencoderKLHunyuanVideo': HunyuanVideoCodec,
}


def codec_class(vae_class: str) -> type[KLCodec]:
    """Codec for a VAE class name.

    Raises:
        ValueError: If no codec knows the class; the message lists those that are known.
    """
    if vae_class not in CODECS:
        raise ValueError(
            f'no codec knows how to encode with {vae_class!r}. Known VAE classes: '
            f'{", ".join(sorted(CODECS))}. A pipeline folder without a vae/ is read in pixel space.'
        )
    return CODECS[vae_class]


def check_replacement(codec: KLCodec, own: KLCodec, place: str) -> None:
    """Check that latents of a VAE are of the kind that a model was trained on.

    Args:
        codec: Codec of the VAE that a user put in the place of the model's own.
        own: Codec of the model's own, which may be on the meta device.
        place: What messages call the replacement.

    Raises:
        ValueError: If class, stride, channels, scale or shift do not agree.
    """
    tiny = type(codec) is TinyCodec and type(own) is KLCodec
    # TAESD gives latents that are scaled already.
    wanted = {
        'class': 'AutoencoderTiny' if tiny else type(own.vae).__name__,
        'stride': own.stride,
        'channels': own.channels,
        'scaling_factor': 1.0 if tiny else own.scale,
        'shift_factor': 0.0 if tiny else own.shift,
    }
    came = {
        'class': type(codec.vae).__name__,
        'stride': codec.stride,
        'channels': codec.channels,
        'scaling_factor': codec.scale,
        'shift_factor': codec.shift,
    }
    wrong = [
        f'{name} {came[name]!r} instead of {value!r}'
        for name, value in wanted.items()
        if came[name] != value
    ]
    if wrong:
        raise ValueError(
            f'{place} does not fit the model, whose own VAE is an {type(own.vae).__name__}: it has '
            f'{", ".join(wrong)}. Give a fine-tuned version of the same VAE, or, where that is an '
            f'AutoencoderKL, its TAESD (an AutoencoderTiny)'
        )


def pad_to_multiple(images: Tensor, multiple: int) -> Tensor:
    """Repeat the last row and column until both sides of (B, C, H, W) divide by ``multiple``."""
    height, width = images.shape[-2:]
    pad = (0, -width % multiple, 0, -height % multiple)
    if not any(pad):
        return images
    return torch.nn.functional.pad(images, pad, mode='replicate')
