# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""What a backbone's selection picks, from the config to the last checkpoint: the timestep."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mmaselect.diffusion.process import ForwardProcess
from mmaselect.diffusion.timestep_plan import AUTO, TimestepPlan
from mmaselect.images.thumbnails import Thumbnail
from mmaselect.logs import log
from mmaselect.models.backbones.checkpoint_due import checkpoint_is_due
from mmaselect.models.backbones.joined_pca import JoinedPCA
from mmaselect.report.strip import Strip
from mmaselect.selection import SelectionResult

#: Names of the tensors in a checkpoint.
PICKED, FUSED = 'picked_timestep', 'fused_timesteps'
#: A tensor cannot hold None.
NONE_YET = -1


class Pick:
    """Where the timestep comes from, and which one holds.

    1. The config gives it, or says ``'auto'``.
    2. ``init_weights`` has it selected, unless a checkpoint will be read right after (`is_needed`).
    3. A checkpoint brings the one that its heads were trained at (`loading`). Where the config has
       another, ``plan.source`` decides which holds.
    4. A checkpoint that was awaited and brought none: it is selected after all (`is_overdue`).

    The timestep is a buffer of the backbone, so that it travels in checkpoints, to all ranks and
    into copies.

    Args:
        backbone: Whose pick it is; the buffers are registered there.
        plan: What the config says.
        process: Knows which timesteps there are.
        is_place_open: Whether blocks or feature are still to be picked, with the timestep or at a
            given one.
        joining: What reduces joined features, and must be fitted before they are read.

    Attributes:
        result: Curve and pick, where this process selected or a checkpoint carried them.
        thumbnails: Some of the images that this process selected on.
        strip: A few of them at timesteps around the pick.
        expects_checkpoint: Whether a checkpoint will be read after ``init_weights``, where that is
            known before; None to find out.
    """

    def __init__(
        self,
        backbone: nn.Module,
        plan: TimestepPlan,
        process: ForwardProcess,
        is_place_open: Callable[[], bool] = lambda: False,
        joining: JoinedPCA | None = None,
    ) -> None:
        self.plan, self.process = plan, process
        self._is_place_open = is_place_open
        self._joining = joining
        self.result: SelectionResult | None = None
        self.thumbnails: list[Thumbnail] = []
        self.strip: Strip | None = None
        self.expects_checkpoint: bool | None = None
        self._awaits_checkpoint = False
        given = [process.check_timestep(step) for step in plan.steps if isinstance(step, int)]
        backbone.register_buffer(PICKED, torch.tensor(NONE_YET if plan.is_automatic else given[0]))
        if plan.count > 1:
            backbone.register_buffer(FUSED, plan.to_tensor())
        # The dict, and not the tensor: moving a module replaces its entries.
        self._buffers: dict[str, Tensor] = backbone._buffers  # type: ignore[assignment]
        self._known: int | None = None

    @property
    def found(self) -> int | None:
        """The timestep; None if none was picked yet."""
        if self._known is None:
            value = int(self._buffers[PICKED])  # on a GPU, this waits for the device: once
            self._known = None if value < 0 else value
        return self._known

    @property
    def timestep(self) -> int:
        """The timestep.

        Raises:
            RuntimeError: If none was picked yet.
        """
        if self.found is None:
            raise RuntimeError(
                "this ASelecTDiT has no timestep yet: timestep='auto' is picked by init_weights(), "
                'which training calls, or comes with a checkpoint. Load a checkpoint that was '
                'trained with this backbone, call init_weights(), or set timestep to a number'
            )
        return self.found

    @timestep.setter
    def timestep(self, value: int) -> None:
        self._known = self.process.check_timestep(value)
        self._buffers[PICKED].fill_(self._known)
        self._awaits_checkpoint = False

    def is_needed(self) -> bool:
        """Whether ``init_weights`` is to select: nothing is picked, and no checkpoint will tell."""
        if not self._is_open():
            return False
        expects = self.expects_checkpoint
        self._awaits_checkpoint = self.plan.source == 'checkpoint' and (
            checkpoint_is_due() if expects is None else expects
        )
        return not self._awaits_checkpoint

    def is_overdue(self) -> bool:
        """Whether ``init_weights`` left it to a checkpoint, and that brought none."""
        overdue = self._awaits_checkpoint and self._is_open()
        if overdue and (self.found is None or self._is_place_open()):
            missing = 'a timestep' if self.found is None else 'a place'
            log(f'no checkpoint brought {missing}, so one is selected now')
        self._awaits_checkpoint = False
        return overdue

    def _is_open(self) -> bool:
        """Whether the timestep, the place, or what reduces joined features is missing."""
        is_fitted = self._joining is None or self._joining.is_fitted
        return self.found is None or self._is_place_open() or not is_fitted

    @contextlib.contextmanager
    def loading(self, state_dict: Mapping[str, Any], prefix: str) -> Iterator[None]:
        """Around the loading of a checkpoint: which timestep holds afterwards.

        Args:
            state_dict: The checkpoint's tensors.
            prefix: What precedes the names of the backbone's.

        Raises:
            ValueError: If its heads were trained on other timesteps than the plan's.
        """
        theirs = state_dict.get(prefix + PICKED)
        if theirs is not None:
            self.plan.check(state_dict.get(prefix + FUSED))
        mine = self.found
        yield
        self._known = None
        if theirs is None or int(theirs) == (NONE_YET if mine is None else mine):
            return
        if mine is not None:
            self._choose(mine, int(theirs))
        elif self._awaits_checkpoint:
            log(
                f'timestep {int(theirs)} comes from the checkpoint, nothing is selected. To select '
                f"with this config instead, set timestep=dict(source='config') in the backbone"
            )

    def _choose(self, mine: int, theirs: int) -> None:
        """Read at one of two timesteps, the config's or a checkpoint's, and say which."""
        how = 'selected' if self.plan.is_automatic else 'given'
        if theirs < 0:
            self.timestep = mine
        elif self.plan.source == 'config':
            self.timestep = mine
            log(
                f"the config's timestep {mine} ({how}) is in use, and not the checkpoint's "
                f'{theirs}, which its heads were trained at. To read there, set '
                f"timestep=dict(steps=..., source='checkpoint') in the backbone",
                logging.WARNING,
            )
        else:
            self.result = None  # it tells of another timestep
            log(
                f'the checkpoint was trained at timestep {theirs}, which is in use now in place '
                f"of the config's {mine} ({how}). To read at the config's, set "
                f"timestep=dict(steps=..., source='config') in the backbone",
                logging.WARNING,
            )

    def __str__(self) -> str:
        one = AUTO if self.found is None else str(self.found)
        if self.plan.count == 1:
            return one
        steps = [one if n == self.plan.place else str(s) for n, s in enumerate(self.plan.steps)]
        return f'[{", ".join(steps)}], fusion={self.plan.fusion!r}'
