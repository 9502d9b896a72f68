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
from mmaselect.apis.sharing import SharedPick
from mmaselect.checks import any_spelling, choice, whole_number
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
        feature: str | Sequence[str] = 'query',
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

    @classmethod
    def from_pretrained(cls, shared: str | Path, **changes: Any) -> FeaturesOnly:
        """Read a model as somebody else did, by what ``save_pretrained`` wrote.

        Args:
            shared: Folder, or hub id, of the pick.
            changes: Further arguments of the class, such as ``device``.

        Raises:
            FileNotFoundError: If there is no such folder and no such repository.
            ValueError: If it holds something else, or a change is a part of the pick.
        """
        return cls(**SharedPick.load(shared).arguments(changes, 'out_indices'))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Maps of a batch; see the class for shapes."""
        return self._read(x)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = 'NCHW',
        intermediates_only: bool = False,
        output_dict: bool = False,
        attn_mask: Tensor | None = None,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]] | dict[str, Any]:
        """Maps in the words of ``timm``'s ``forward_intermediates``.

        Args:
            x: Batch; see the class.
            indices: Numbers of blocks, which must be among those that are read; a number n stands
                for the last n of them. All that are read if None.
            return_prefix_tokens: Must be False: there are no prefix tokens.
            norm: Must be False: the transformer has no norm for its intermediate features.
            stop_early: No effect: a pass always ends at the deepest block that is read.
            output_fmt: ``'NCHW'``, or ``'NLC'`` for (B, H * W, C).
            intermediates_only: Return the maps alone.
            output_dict: Return a dict of ``image_features`` and ``image_intermediates``.
            attn_mask: Must be None.

        Returns:
            The deepest map that is read, and the list of maps; or one of the other two forms.

        Raises:
            ValueError: If a block is not read, or something is asked for that there is not.

        Example:
            >>> import torch
            >>> from mmaselect.apis import FeaturesOnly
            >>> model = FeaturesOnly('mmaselect://dit_cifar10', timestep=75, out_indices=[1, 3])
            >>> last, maps = model.forward_intermediates(torch.zeros(1, 3, 32, 32), indices=[1])
            >>> last.shape, len(maps)
            (torch.Size([1, 224, 8, 8]), 1)
        """
        for name, asked in (
            ('return_prefix_tokens', return_prefix_tokens),
            ('norm', norm),
            ('attn_mask', attn_mask is not None),
        ):
            if asked:
                raise ValueError(f'{name}: a frozen diffusion transformer has no such thing')
        choice('output_fmt', output_fmt, ('NCHW', 'NLC'))
        wanted = self._positions(indices)
        maps = self._read(x)
        if output_fmt == 'NLC':
            maps = [one.flatten(2).transpose(1, 2) for one in maps]
        deepest = maps[max(range(len(maps)), key=self.map_blocks.__getitem__)]
        chosen = [maps[place] for place in wanted]
        if output_dict:
            found: dict[str, Any] = dict(image_intermediates=chosen)
            return found if intermediates_only else {'image_features': deepest, **found}
        return chosen if intermediates_only else (deepest, chosen)

    def _positions(self, indices: int | Sequence[int] | None) -> list[int]:
        """Places among the maps of blocks that a caller names."""
        blocks = self.map_blocks
        if indices is None:
            return list(range(len(blocks)))
        if isinstance(indices, int):
            count = whole_number('indices', indices, 1)
            if count > len(blocks):
                raise ValueError(f'indices={count}: {len(blocks)} blocks are read, {blocks}')
            return list(range(len(blocks)))[-count:]
        depth = self.dit.num_blocks
        numbers = [index + depth if index < 0 else index for index in indices]
        if missing := [number for number in numbers if number not in blocks]:
            raise ValueError(
                f'indices: block {missing[0]} is not read, {blocks} are: give it in out_indices, '
                f'when the model is built'
            )
        return [blocks.index(number) for number in numbers]
