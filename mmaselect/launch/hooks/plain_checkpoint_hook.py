# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Checkpoints of tensors and plain Python types, which a safe load takes as they are."""

from __future__ import annotations

import numbers
from collections import OrderedDict
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.logging import HistoryBuffer
from mmengine.runner import Runner
from torch import Tensor

from mmaselect.openmmlab.registries import HOOKS

#: Where a checkpoint keeps the history of the logged scalars.
HISTORY = 'log_history'


@HOOKS.register_module()
class PlainCheckpointHook(Hook):
    """Writes what MMEngine puts into a checkpoint in plain types.

    MMEngine pickles ``HistoryBuffer`` objects, NumPy scalars and functions of its schedulers, so
    ``torch.load(..., weights_only=True)``, PyTorch's default since 2.6, refuses its checkpoints.
    With this hook histories are tensors under ``'log_history'``, scalars are Python numbers and
    arrays are lists; functions are left out, for the schedulers have them. On loading, the
    histories are put back for ``resume``. Without the hook such a checkpoint resumes too: only
    the smoothing of the log starts anew.
    """

    priority = 'LOWEST'  # after hooks that add to the checkpoint

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        hub = checkpoint.get('message_hub')
        if isinstance(hub, Mapping):
            scalars = hub.get('log_scalars', {})
            checkpoint[HISTORY] = {
                name: _history_to_tensors(buffer)
                for name, buffer in scalars.items()
                if isinstance(buffer, HistoryBuffer)
            }
            checkpoint['message_hub'] = {
                **hub,
                'log_scalars': {
                    name: value
                    for name, value in scalars.items()
                    if not isinstance(value, HistoryBuffer)
                },
            }
        refused: set[str] = set()
        for key in list(checkpoint):
            checkpoint[key] = to_plain(checkpoint[key], refused)
        if refused:
            runner.logger.warning(
                f'the checkpoint holds objects of {", ".join(sorted(refused))}: a load with '
                f'weights_only=True will refuse it unless they are allowed by '
                f'torch.serialization.add_safe_globals'
            )

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        hub = checkpoint.get('message_hub')
        for name, stored in (checkpoint.pop(HISTORY, None) or {}).items():
            if isinstance(hub, dict):
                hub['log_scalars'][name] = HistoryBuffer(
                    stored['values'].cpu().numpy(),
                    stored['counts'].cpu().numpy(),
                    stored['max_length'],
                )


def _history_to_tensors(buffer: HistoryBuffer) -> dict[str, Any]:
    values, counts = buffer.data
    return {
        'values': torch.as_tensor(np.asarray(values)),
        'counts': torch.as_tensor(np.asarray(counts)),
        'max_length': int(buffer.max_length),
    }


def to_plain(value: Any, refused: set[str] | None = None) -> Any:
    """A copy of nested containers in types that a load with ``weights_only=True`` takes.

    Args:
        value: Tensors are kept, and so is what has no plain type.
        refused: Gets the class names of what has none.

    Returns:
        NumPy scalars as Python numbers, arrays as nested lists, other mappings as dicts. Entries
        of mappings that are functions are left out.
    """
    if value is None or isinstance(value, (bool, bytes, Tensor, torch.dtype, torch.device)):
        return value
    if isinstance(value, str):
        return str(value)  # PyTorch's version is a class of its own
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, complex):
        return complex(value)
    if isinstance(value, (numbers.Real, Decimal)):
        return float(value)
    if isinstance(value, Mapping):
        kind = OrderedDict if isinstance(value, OrderedDict) else dict
        plain = kind(
            (to_plain(key, refused), to_plain(entry, refused))
            for key, entry in value.items()
            if not callable(entry) or isinstance(entry, Tensor)
        )
        if hasattr(value, '_metadata'):  # versions of a state dict's modules
            plain._metadata = value._metadata  # type: ignore[attr-defined]  # torch's own, too
        return plain
    if isinstance(value, (list, tuple, set, frozenset)):
        entries = [to_plain(entry, refused) for entry in value]
        return (
            tuple(entries)
            if isinstance(value, tuple)
            else (set(entries) if isinstance(value, (set, frozenset)) else entries)
        )
    if refused is not None:
        refused.add(f'{type(value).__module__}.{type(value).__qualname__}')
    return value
