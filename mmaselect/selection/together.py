# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Several (block, feature) of one pass that are good together: what comes after the pick."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mmaselect.diffusion import FrozenDiT, TapKey
from mmaselect.selection.arms import Places
from mmaselect.selection.criteria.view_pairs import InstanceSensitivity
from mmaselect.selection.options import SelectionOptions
from mmaselect.selection.place import choose_features
from mmaselect.selection.ranks import gather_answers
from mmaselect.selection.result import SelectionResult
from mmaselect.selection.scoring import score_step, start_meters
from mmaselect.selection.stages import Stages


def check_top(options: SelectionOptions, dit: FrozenDiT) -> None:
    """Check that several (block, feature) can be picked, where they are asked for.

    Raises:
        ValueError: If they cannot.
    """
    if options.top == 1:
        return
    places = Places.of(dit)
    if places.count is not None or len(places.groups) == 1 or len(places.groups[0]) > 1:
        raise ValueError(
            f'top={options.top} picks {options.top} (block, feature) that are joined into one map: '
            f"leave one place open, by blocks='auto' or, of one block, feature='auto'"
        )
    if options.top > len(places.taps):
        raise ValueError(
            f'top={options.top}: there are {len(places.taps)} (block, feature) to pick from'
        )
    deciding = next(iter(options.criteria.values()))
    if type(deciding) is not InstanceSensitivity:
        raise ValueError(
            f'top={options.top} is decided by InstanceSensitivity of the joined features, and the '
            f'criterion is {type(deciding).__name__}: leave out criterion, or top'
        )


def pick_together(result: SelectionResult, stages: Stages, count: int) -> int:
    """Add to a pick the (block, feature) that go best with it, at its timestep.

    All candidates are read once more, on the images of the pick: a race has dropped most of them
    before they saw all images. All ranks call it together.

    Args:
        result: Its ``cells``, ``blocks`` and ``feature`` are changed, and ``joined`` is filled.
        stages: The sweep that found it.
        count: How many are wanted, that of the pick included.

    Returns:
        int: Transformer passes of one image each, of all ranks.

    Raises:
        RuntimeError: If fewer have finite features.
    """
    found, evaluations = _descriptors(result, stages)
    (first,) = result.cells
    if len(found) < count:
        raise RuntimeError(
            f'{count} (block, feature) are wanted, and {len(found)} have finite features at '
            f'timestep {result.timestep}: use dtype="bf16" or "fp32"'
        )
    criterion = stages.criteria[stages.deciding]
    assert isinstance(criterion, InstanceSensitivity)
    chosen = choose_features(found, first, count, criterion.ridge)
    result.cells = list(chosen)
    result.blocks = [block for block, _ in chosen]
    result.feature = ','.join(dict.fromkeys(feature for _, feature in chosen))
    result.joined = [float(score) for score in chosen.values()]
    return evaluations


def _descriptors(result: SelectionResult, stages: Stages) -> tuple[dict[TapKey, Tensor], int]:
    """(N, 2, D) of every (block, feature) whose features are finite, and the passes it took."""
    name, size, world = stages.deciding, stages.options.batch_size, stages.world_size
    order = stages.calibration.order[: result.num_images]
    meters = start_meters({name: stages.criteria[name]}, stages.places.taps, stages.dit.device)

    def read(tell: Callable[[str], None]) -> int:
        share = order[stages.rank :: world]
        passes = 0
        for start in range(0, len(share), size):
            positions = share[start : start + size]
            tell(f'reading timestep {result.timestep}, images {positions}')
            batch = stages.encode(stages.calibration.batch(positions))
            passes += score_step(stages.dit, batch, result.timestep, meters)
        return passes

    shares = gather_answers(read)
    placed = torch.cat([torch.arange(rank, len(order), world) for rank in range(world)]).argsort()
    found = {}
    for (tap, _), meter in meters.items():
        assert isinstance(meter, InstanceSensitivity)
        meter.sync(dist_sync_fn=meter.dist_sync_fn, should_sync=world > 1)
        rows = meter.descriptors(stages.dit.channels(tap))
        if world > 1:
            meter.unsync()
        if bool(rows.isfinite().all()):
            # As one rank takes them, so that sums are equal whatever the number of ranks.
            found[tap] = rows[:, :, 0][placed.to(rows.device)]
    return found, sum(shares)
