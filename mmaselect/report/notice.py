# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""A pick as a log shows it: in a box, with where it comes from and what it cost."""

from __future__ import annotations

from pathlib import Path

from mmaselect.logs import logger, warn
from mmaselect.selection.result import SelectionResult, images_seen
from mmaselect.selection.sweep import Sweep
from mmaselect.terminal.boxes import boxed


def pick_notice(
    result: SelectionResult,
    num_train_timesteps: int,
    stored_at: str | Path | None = None,
    found: str | None = None,
) -> str:
    """A boxed account of a selection.

    Args:
        result: The selection.
        num_train_timesteps: Timesteps that there are.
        stored_at: Where the result is kept.
        found: Where the result was found, say ``'the checkpoint'``; None if it was selected now.
    """
    cost = f'{result.model_evaluations} model evaluations, {result.seconds:.1f} s'
    lines = [
        f'A-SelecT picked timestep {result} of {num_train_timesteps} '
        f'(sigma {result.noise_level:.3f})',
        f'by {result.criterion} of {result.where_scored}, {images_seen(result)}',
        *([f'read together: {result.together}'] if result.is_joined else []),
        f'selected now: {cost}' if found is None else f'found in {found}; it took {cost} then',
    ]
    if result.cost is not None:
        lines.append(f'cost: {result.cost}')
    if result.places_as_good:
        lines.append(f'may be as good: {result.places_as_good}')
    lines += [f'UNDECIDED: {said}' for said in result.indecision]
    if stored_at is not None:
        lines.append(f'stored in {stored_at}')
    return boxed(lines)


def announce_pick(sweep: Sweep, result: SelectionResult) -> None:
    """Log what a sweep found: the pick, in a box, and its warnings."""
    notice = pick_notice(
        result,
        sweep.dit.num_train_timesteps,
        sweep.stored_at,
        'the cache' if sweep.was_stored else None,
    )
    logger.info('\n%s', notice)
    for warning in result.warnings:
        warn(f'{warning}. {warning.advice}'.rstrip())
