# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""A frozen model with the face of ``timm``'s ``features_only``, for libraries that know it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmaselect.apis.features import FeatureInfo
from mmaselect.checks import seed_number
from mmaselect.diffusion import FrozenDiT, draw_noise, noise_seed
from mmaselect.selection import SelectionResult


class FeaturesOnly(nn.Module):
    """A module that gives a list of feature maps, as ``timm.create_model(features_only=True)``.

    It is frozen: no parameter is trained, and it stays in eval mode. Its state dict has the frozen
    weights, as timm's has; the backbone of this package, ASelecTDiT, keeps them out.

    Args:
        pretrained: Hub id, local pipeline folder, or ``mmaselect://NAME``.
        timestep: Where to read: a number, or a :class:`SelectionResult`.
        out_indices: Blocks to read, one map each; the family's default if None.
        feature: ``'query'``, ``'key'``, ``'value'``, ``'attention'`` or ``'output'``.
        dtype: Of the frozen weights; maps are float32.
        seed: Of the noise, which depends on it and on the latent's shape alone.
        model_kwargs: More arguments of :meth:`FrozenDiT.from_pretrained`.

    Attributes:
        feature_info (FeatureInfo): ``channels()``, ``reduction()`` and ``module_name()``.
        pretrained_cfg (dict): ``mean`` and ``std`` that inputs are normalized with, ``input_size``
            and ``interpolation``, in timm's words.

    Shape:
        - Input: (B, 3, H, W), normalized by that mean and std, which is [-1, 1].
        - Output: list of (B, C, ceil(H / stride), ceil(W / stride)).

    Example:
        >>> import torch
        >>> from mmaselect.apis import FeaturesOnly
        >>> model = FeaturesOnly('mmaselect://dit_cifar10', timestep=75, out_indices=[1, 3])
        >>> model.feature_info.channels(), model.feature_info.reduction()
        ([224, 224], [4, 4])
        >>> [tuple(one.shape) for one in model(torch.zeros(2, 3, 32, 48))]
        [(2, 224, 8, 12), (2, 224, 8, 12)]
    """

    def __init__(
        self,
        pretrained: str | Path,
        timestep: int | SelectionResult,
        out_indices: Sequence[int] | int | None = None,
        feature: str = 'query',
        dtype: str | torch.dtype = 'fp32',
        seed: int = 0,
        **model_kwargs: Any,
    ) -> None:
        super().__init__()
        self.seed = seed_number('seed', seed)
        self.dit = FrozenDiT.from_pretrained(
            pretrained, blocks=out_indices, features=feature, dtype=dtype, **model_kwargs
        )
        step = timestep.timestep if isinstance(timestep, SelectionResult) else timestep
        self.timestep = self.dit.process.check_timestep(step)
        self.keys = [(block, self.dit.feature_names[0]) for block in self.dit.blocks]
        self.feature_info = FeatureInfo(
            [self.dit.channels(key) for key in self.keys],
            self.dit.stride,
            [f'block{block}.{name}' for block, name in self.keys],
        )
        side = self.dit.native_size
        self.pretrained_cfg = dict(
            input_size=(3, side, side),
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
            interpolation='bicubic',
        )

    @torch.no_grad()
    def forward(self, x: Tensor) -> list[Tensor]:
        """Maps of a batch; see the class for shapes."""
        latent = self.dit.encode(x)
        noise = draw_noise(tuple(latent.shape[1:]), [noise_seed(self.seed)], latent.device)
        maps = self.dit.features(latent, self.timestep, noise.expand_as(latent))
        return [maps[key].float() for key in self.keys]
