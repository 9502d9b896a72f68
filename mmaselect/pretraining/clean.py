# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Clean training samples: pixels, or latents of a VAE that are encoded once and kept."""

from __future__ import annotations

from pathlib import Path

import diffusers
import torch
from diffusers import ModelMixin
from torch import Tensor

from mmaselect.images import to_model_range


class PixelSource:
    """The images themselves.

    Args:
        images: (N, 3, S, S), uint8; kept on the device where they lie.
    """

    def __init__(self, images: Tensor) -> None:
        self.images = images
        self.channels, self.size = images.shape[1], images.shape[-1]

    def __call__(self, index: Tensor, flip: Tensor, generator: torch.Generator) -> Tensor:
        """Return clean samples.

        Args:
            index: (B,), which images.
            flip: (B,), bool, which of them to mirror.
            generator: Also tells the device that the samples are wanted on.

        Returns:
            Tensor: (B, C, S, S), float32, in [-1, 1].
        """
        clean = to_model_range(self.images[index.to(self.images.device)].to(generator.device))
        return torch.where(flip[:, None, None, None], clean.flip(-1), clean)


class LatentSource:
    """Latents of a VAE: mean and spread of each image's posterior, and of its mirror image's.

    A mirrored latent is not the latent of the mirrored image, so both are encoded. Each call draws
    from the posterior, where the VAE has one.

    Args:
        vae: Any diffusers autoencoder of images.
        images: (N, 3, S, S), uint8.
        device: Where the VAE runs.
        mirror: Whether mirrored images will be asked for.
        batch_size: Images that the VAE encodes at a time.

    Raises:
        ValueError: If the VAE cannot take images of this size, or says nothing of its scale.
    """

    def __init__(
        self,
        vae: ModelMixin,
        images: Tensor,
        device: torch.device,
        mirror: bool = True,
        batch_size: int = 32,
    ) -> None:
        # DiTPipeline decodes by the scale alone: a shift in the VAE's config would be lost there.
        self.scale = vae.config.get('scaling_factor')
        if self.scale is None or vae.config.get('shift_factor'):
            raise ValueError(
                f'the VAE ({type(vae).__name__}) has scaling_factor={self.scale} and shift_factor='
                f'{vae.config.get("shift_factor")}; a DiT pipeline decodes with a scaling_factor '
                'and no shift_factor. Take another VAE, or set both in its config.json'
            )
        vae = vae.to(device).eval().requires_grad_(False)
        halves = [
            [self._encode(vae, part, device, flip) for part in images.split(batch_size)]
            for flip in ((False, True) if mirror else (False,))
        ]
        #: (2 or 1, N, 2, C, h, w): mirrored or not, image, mean and spread.
        self.posterior = torch.stack([torch.cat(half) for half in halves])
        self.channels, self.size = self.posterior.shape[3], self.posterior.shape[-1]

    @staticmethod
    @torch.no_grad()
    def _encode(vae: ModelMixin, images: Tensor, device: torch.device, flip: bool) -> Tensor:
        images = to_model_range(images.to(device))
        encoded = vae.encode((images.flip(-1) if flip else images).to(vae.dtype))
        if hasattr(encoded, 'latent_dist'):
            mean, std = encoded.latent_dist.mean, encoded.latent_dist.std
        else:
            mean = encoded.latents if hasattr(encoded, 'latents') else encoded.latent
            std = torch.zeros_like(mean)
        return torch.stack([mean, std], 1).half().cpu()

    def __call__(self, index: Tensor, flip: Tensor, generator: torch.Generator) -> Tensor:
        """Return clean latents (B, C, h, w), scaled; see `PixelSource`."""
        device = generator.device
        mean, std = self.posterior[flip.long().cpu(), index.cpu()].to(device).float().unbind(1)
        draw = torch.randn(mean.shape, generator=generator, device=device)
        return (mean + std * draw) * self.scale


def load_vae(folder: str | Path) -> ModelMixin:
    """Load a VAE, whatever its class.

    Args:
        folder: A pipeline's folder with a ``vae/``, or the VAE's own; or the hub id of a VAE.

    Raises:
        OSError: If diffusers finds no model there.
    """
    local = Path(folder).expanduser()
    if local.is_dir():
        folder = local / 'vae' if (local / 'vae').is_dir() else local
    return diffusers.AutoModel.from_pretrained(str(folder))
