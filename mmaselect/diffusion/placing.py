# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Device maps where several processes run: each has an accelerator of its own."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch

logger = logging.getLogger(__name__)

#: Device maps that spread a model over all accelerators of a machine.
_SPREADING = ('auto', 'balanced', 'balanced_low_0', 'sequential')


def count_ranks() -> int:
    """How many processes run together."""
    is_parallel = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if is_parallel else 1


def of_this_rank(
    load_kwargs: Mapping[str, Any], ranks: int, own: Callable[[], int]
) -> dict[str, Any]:
    """``load_kwargs`` whose ``device_map`` puts nothing on another rank's accelerator.

    Args:
        load_kwargs: Arguments of diffusers' ``from_pretrained``.
        ranks: How many processes run together.
        own: Gives the number of this rank's accelerator.

    Returns:
        dict: The same; what a map puts on one accelerator goes onto this rank's.

    Raises:
        ValueError: If several ranks run, and the map spreads the model over several accelerators.
    """
    given = dict(load_kwargs)
    device_map = given.get('device_map')
    if device_map is None or ranks == 1:
        return given
    parts = device_map if isinstance(device_map, Mapping) else {'': device_map}
    found = {name: _accelerator_index(device) for name, device in parts.items()}
    named = {index for index in found.values() if index is not None}
    if len(named) > 1 or (isinstance(device_map, str) and device_map in _SPREADING):
        raise ValueError(
            f'device_map={device_map!r} spreads the model over several accelerators, and '
            f'{ranks} ranks run here, of which each needs its own: '
            f'leave device_map out, or run one process'
        )
    if not named:
        return given
    mine = own()
    if named != {mine}:
        logger.info('device_map names accelerator %d; this rank has %d, and takes it', *named, mine)
    given['device_map'] = {
        name: device if found[name] is None else mine for name, device in parts.items()
    }
    return given


def _accelerator_index(device: Any) -> int | None:
    """The number of an accelerator; None if it is a CPU, a disk, or no single device."""
    if isinstance(device, int) and not isinstance(device, bool):
        return device
    if not isinstance(device, (str, torch.device)) or str(device) == 'disk':
        return None
    try:
        found = torch.device(device)
    except RuntimeError:
        return None
    return None if found.type in ('cpu', 'meta') else found.index or 0
