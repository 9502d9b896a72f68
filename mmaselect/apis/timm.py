# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""A frozen model with the face of ``timm``'s ``features_only``, for libraries that know it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmaselect.apis.frozen_module import FrozenModule
from mmaselect.apis.reader import Calibration, Timesteps
from mmaselect.checks import any_spelling
from mmaselect.diffusion import ModelSource
from mmaselect.diffusion.pixel_gate import PixelGate

HALF = (0.5, 0.5, 0.5)
ADVICE = (
    'Normalize images by mean 0.5 and std 0.5, which pretrained_cfg has '
    '(timm.data.create_transform takes them from it)'
)


class FeaturesOnly(FrozenModule):
    """A module that gives a list of feature maps, as ``timm.create_model(features_only=True)``.

    It is frozen: no parameter is trained, and it stays in eval mode. Its state dict has the frozen
    weights, as timm's has; the backbone of this package, ASelecTDiT, keeps them out.

    Args:
        pretrained: Which model, as in :class:`~mmaselect.FeatureExtractor`.
        timestep: Where to read: a number, a :class:`SelectionResult`, ``'auto'``, a list, or a
            dict, as in :class:`~mmaselect.FeatureExtractor`.
        out_indices: Blocks to read, one map each; the family's default if None.
        feature: ``'query'``, ``'key'``, ``'value'``, ``'attention'`` or ``'output'``.
        dtype: Precision of the frozen weights; maps are float32.
        seed: Seed of the noise, which depends on it and on the latent's shape alone.
        calibration: Images that ``'auto'`` selects on, as in :class:`~mmaselect.FeatureExtractor`.
        selection: How it selects, as in :class:`~mmaselect.FeatureExtractor`.
        device: Where the model is put, and where a timestep is selected.
        condition: None for the empty condition; a class label or a prompt otherwise.
        flat: As in :class:`~mmaselect.FeatureExtractor`.

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

    @any_spelling
    def __init__(
        self,
        pretrained: str | Path | Mapping[str, Any] | ModelSource,
        timestep: Timesteps,
        out_indices: Sequence[int] | int | str | None = None,
        feature: str = 'query',
        dtype: str | torch.dtype = 'auto',
        seed: int = 0,
        calibration: Calibration | None = None,
        selection: Mapping[str, Any] | str | None = None,
        device: str | torch.device = 'cpu',
        condition: Any = None,
        **flat: Any,
    ) -> None:
        super().__init__(
            pretrained, timestep, out_indices, feature, dtype, seed, calibration, selection, device,
            condition, flat, PixelGate(HALF, HALF, 1, advice=ADVICE),
        )  # fmt: skip
        side = self.dit.native_size
        self.pretrained_cfg = dict(
            input_size=(3, side, side),
            mean=HALF,
            std=HALF,
            interpolation='bicubic',
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """Maps of a batch; see the class for shapes."""
        return self._read(x)
