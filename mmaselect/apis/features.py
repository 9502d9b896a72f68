# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Feature maps of images, in a notebook or a script."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmaselect.checks import seed_number, shorten
from mmaselect.diffusion import FrozenDiT, TapKey, draw_noise, noise_seed
from mmaselect.images import as_rgb, load_rgb, one_or_several, to_model_range
from mmaselect.selection import SelectionResult

#: An image as a user may have it.
ImageLike = str | Path | np.ndarray | Image.Image | Tensor


def pick_device(device: str | torch.device | None) -> torch.device:
    """A device by its name; CUDA if there is one where none is named.

    Raises:
        ValueError: If there is no such device.
    """
    if device is None:
        device = 'cuda' if torch.cuda.is_available() else 'cpu'
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (TypeError, ValueError, RuntimeError, OverflowError, AssertionError) as error:
        raise ValueError(
            f"device must be one that PyTorch has here, such as 'cpu' or 'cuda'; got "
            f'{shorten(device)} ({str(error).splitlines()[0]})'
        ) from error
    return found


class FeatureExtractor:
    """Any block and feature of a frozen diffusion transformer, for images as they are.

    Args:
        pretrained: Hub id, local pipeline folder, or ``mmaselect://NAME``.
        timestep: Where to read: a number, or a :class:`SelectionResult`.
        blocks: Blocks to read; the family's default if None.
        features: One or more of ``'query'``, ``'key'``, ``'value'``, ``'attention'``, ``'output'``.
        dtype: Of the frozen weights.
        device: CUDA if there is one, by default.
        seed: Of the noise, which depends on it and on the latent's shape alone.
        model_kwargs: More arguments of :meth:`FrozenDiT.from_pretrained`.

    Example:
        >>> import numpy as np
        >>> from mmaselect import FeatureExtractor
        >>> extract = FeatureExtractor('mmaselect://dit_cifar10', timestep=75)
        >>> photo = np.zeros((48, 40, 3), np.uint8)
        >>> extract(photo)[3, 'query'].shape
        torch.Size([1, 224, 12, 10])
    """

    def __init__(
        self,
        pretrained: str | Path,
        timestep: int | SelectionResult,
        blocks: Sequence[int] | int | None = None,
        features: str | Sequence[str] = 'query',
        dtype: str | torch.dtype = 'fp32',
        device: str | torch.device | None = None,
        seed: int = 0,
        **model_kwargs: Any,
    ) -> None:
        seed = seed_number('seed', seed)
        device = pick_device(device)
        self.dit = FrozenDiT.from_pretrained(
            pretrained, blocks=blocks, features=features, dtype=dtype, **model_kwargs
        ).to(device)
        if isinstance(timestep, SelectionResult):
            timestep = timestep.timestep
        self.timestep = self.dit.process.check_timestep(timestep)
        self.seed = seed

    def _pixels(self, image: ImageLike) -> Tensor:
        """(3, H, W) in [-1, 1]."""
        if isinstance(image, Tensor):
            if image.ndim != 3 or image.shape[0] != 3 or not image.is_floating_point():
                raise ValueError(
                    f'a tensor must be (3, H, W), float, RGB in [-1, 1]; got '
                    f'{tuple(image.shape)} {image.dtype}'
                )
            return image
        if isinstance(image, (str, Path)):
            image = load_rgb(image)
        # A copy: arrays of PIL images are read-only, which torch warns of.
        return to_model_range(torch.from_numpy(as_rgb(image).copy()).permute(2, 0, 1))

    def __call__(self, images: ImageLike | Sequence[ImageLike]) -> dict[TapKey, Tensor]:
        """Feature maps of one image or of several of one size.

        Args:
            images: Paths, (H, W, 3) uint8 RGB arrays, PIL images, or (3, H, W) tensors in [-1, 1];
                or one array (N, H, W, 3) of all.

        Returns:
            dict: (block, feature) to float32 maps (B, C, ceil(H / stride), ceil(W / stride)).

        Raises:
            ValueError: If there is no image, one is something else, or their sizes differ.
        """
        pixels = [self._pixels(image) for image in one_or_several(images)]
        if not pixels:
            raise ValueError('images is empty: give at least one image')
        sizes = {tuple(image.shape[1:]) for image in pixels}
        if len(sizes) != 1:
            raise ValueError(
                f'images of one call must have one size, got {sorted(sizes)}; call once for each '
                f'size, or resize them'
            )
        latent = self.dit.encode(torch.stack(pixels).to(self.dit.device))
        noise = draw_noise(tuple(latent.shape[1:]), [noise_seed(self.seed)], latent.device)
        maps = self.dit.features(latent, self.timestep, noise.expand_as(latent))
        return {key: value.float() for key, value in maps.items()}
