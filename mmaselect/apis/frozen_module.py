# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""What modules for other libraries share: a frozen model that reads normalized batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmaselect.apis.features import FeatureInfo
from mmaselect.apis.reader import (
    OLD_TIMESTEP,
    Calibration,
    Reader,
    Timesteps,
    check_schedule,
    timestep_plan,
)
from mmaselect.apis.sharing import Shareable, SharedPick
from mmaselect.checks import gathered
from mmaselect.diffusion import FrozenDiT, ModelSource
from mmaselect.diffusion.devices import pick_device
from mmaselect.diffusion.joining import join_maps, map_name
from mmaselect.diffusion.pixel_gate import PixelGate
from mmaselect.selection import SelectionOptions, SelectionResult


class FrozenModule(nn.Module, Shareable):
    """A frozen model as a module; subclasses give its maps the form that a library expects.

    No parameter is trained, and it stays in eval mode. Its state dict has the frozen weights, as
    other libraries' backbones have; the backbone of this package, ASelecTDiT, keeps them out.

    Args:
        pretrained: As in :class:`~mmaselect.FeatureExtractor`.
        timestep: As in :class:`~mmaselect.FeatureExtractor`.
        blocks: Blocks to read, one map each; the family's default if None. ``'auto'``: see
            :class:`~mmaselect.FeatureExtractor`.
        feature: ``'query'``, ``'key'``, ``'value'``, ``'attention'``, ``'output'``, or ``'auto'``.
            Several are joined, those of each block into one map; with their blocks
            (``['2.attention', '4.query']``), all into one.
        dtype: Precision of the frozen weights; maps are float32.
        seed: Seed of the noise, which depends on it and on the latent's shape alone.
        calibration: Images that ``timestep='auto'`` selects on.
        selection: How it selects.
        device: Where the model is put, and where a timestep is selected.
        condition: None for the empty condition; a class label or a prompt otherwise.
        flat: As in :class:`~mmaselect.FeatureExtractor`.
        gate: What batches are normalized with.
    """

    def __init__(
        self,
        pretrained: str | Path | Mapping[str, Any] | ModelSource,
        timestep: Timesteps,
        blocks: Sequence[int] | int | str | None,
        feature: str | Sequence[str],
        dtype: str | torch.dtype,
        seed: int,
        calibration: Calibration | None,
        selection: Mapping[str, Any] | str | None,
        device: str | torch.device,
        condition: Any,
        flat: dict[str, Any],
        gate: PixelGate,
    ) -> None:
        super().__init__()
        timestep = gathered('timestep', timestep, 'steps', OLD_TIMESTEP, flat)
        source = ModelSource.gather(pretrained, flat, type(self), SelectionOptions.elsewhere())
        self.dit = FrozenDiT.from_pretrained(
            source,
            blocks=blocks,
            feature=feature,
            dtype=dtype,
            condition=condition,
            check=partial(check_schedule, timestep_plan(timestep), selection),
        ).follow(pick_device(device))
        self.gate = gate.to(self.dit.device)
        self._reader = Reader(self.dit, timestep, seed, calibration, selection)
        self.source, self._condition = source, condition
        self.maps = self.dit.maps
        self.feature_info = FeatureInfo(
            [sum(self._reader.channels(key) for key in group) for group in self.maps],
            self.dit.stride,
            [map_name(group) for group in self.maps],
        )

    @property
    def timestep(self) -> int:
        """Where images are read: of several timesteps the picked one or, without one, the first."""
        return self._reader.timestep

    @property
    def timesteps(self) -> tuple[int, ...]:
        """All timesteps that images are read at."""
        return self._reader.timesteps

    @property
    def selection_result(self) -> SelectionResult | None:
        """Curve and pick, if the timestep was selected."""
        return self._reader.selection_result

    @property
    def map_blocks(self) -> list[int]:
        """Block of each map, the deepest one of those that are joined."""
        return [max(block for block, _ in group) for group in self.maps]

    def shared_pick(self) -> SharedPick:
        """What ``save_pretrained`` writes."""
        return self._reader.shared_pick(self.source, condition=self._condition)

    def _read(self, inputs: Tensor) -> list[Tensor]:
        """A map for each block, of a batch (B, 3, H, W) as `gate` takes it."""
        return join_maps(self._reader.read(self.gate(inputs)), self.maps)
