# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Scores of many criteria at one timestep, each (block, feature) by itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from mmaselect.analysis.encoded import EncodedImages
from mmaselect.analysis.result_folder import ResultFolder
from mmaselect.analysis.study import Study
from mmaselect.images.labeled import LabeledImages
from mmaselect.selection import Criterion
from mmaselect.selection.scoring import read_meters, score_step, start_meters
from mmaselect.terminal.progress import progress_bar


def score_timestep(
    images: EncodedImages, timestep: int, criteria: Mapping[str, Criterion]
) -> list[dict[str, Any]]:
    """Score every block and feature by every criterion, from one pass over the images.

    The numbers are those that :class:`~mmaselect.selection.sweep.Sweep` gives for the same images
    and seed; a sweep reports the criteria that it was not asked to pick by as means over blocks.

    Args:
        images: Calibration images.
        timestep: 0 (clean) to T - 1 (noise).
        criteria: Name to criterion; they are cloned, and not changed.

    Returns:
        Rows ``criterion, block, feature, score, std, sem``; None where a number is undefined.
        Features that are not finite, in any block, leave the timestep without scores: see
        :class:`~mmaselect.selection.scoring.StepScores`.
    """
    dit = images.dit
    meters = start_meters(criteria, dit.keys, dit.device)
    draws = max(criterion.draws for criterion in criteria.values())
    for batch in images.batches(draws):
        score_step(dit, batch, timestep, meters)
    scores = read_meters(meters, dit, timestep, images.num_tokens)
    return [
        dict(
            criterion=name,
            block=tap[0],
            feature=tap[1],
            **{key: scores.value(tap, name, key) for key in ('score', 'std', 'sem')},
        )
        for tap, name in meters
    ]


def usable_criteria(
    images: EncodedImages, criteria: Mapping[str, Criterion]
) -> tuple[dict[str, Criterion], dict[str, str]]:
    """Those criteria that are defined for feature maps of this size, and why the others are not.

    A cut-off may leave no low or no high frequency on a small map: a ValueError that is better met
    before an hour of scoring than after.

    Returns:
        Usable criteria by name, and reasons by name.
    """
    batch = next(images.features(0))
    usable, reasons = {}, {}
    for name, criterion in criteria.items():
        if criterion.needs_labels or criterion.views:
            usable[name] = criterion
            continue
        trial = criterion.clone()
        try:
            for tap in images.dit.keys:
                blank = torch.zeros_like(batch.draws[0][tap][:1], device='cpu')
                trial.update(*[blank] * criterion.draws)
        except ValueError as error:
            reasons[name] = str(error)
        else:
            usable[name] = criterion
    return usable, reasons


def score_grid(
    study: Study,
    folder: ResultFolder,
    images: LabeledImages,
    timesteps: Sequence[int],
    criteria: Mapping[str, Criterion],
) -> list[dict[str, Any]]:
    """Score the timesteps that have no stored result, with a progress bar.

    Criteria that are not defined for maps of this size are left out, and a line says so.

    Args:
        study: The model.
        folder: Folder of the results.
        images: Those of ``study.calibration_images`` for these criteria.
        timesteps: Which to score.
        criteria: By name.

    Returns:
        For each timestep ``timestep, noise_level, log_snr, criteria`` (rows), in order.
    """
    todo = [step for step in timesteps if folder.find(step) is None]
    if todo:
        encoded = study.encode(images).images
        usable, unusable = usable_criteria(encoded, criteria)
        for name, reason in unusable.items():
            print(f'left out: {name}: {reason}')
        if not usable:
            raise ValueError('no criterion is defined for feature maps of this size')
        with progress_bar('timesteps') as bar:
            task = bar.add_task(f'{len(usable)} criteria', total=len(todo))
            for step in todo:
                folder.save(
                    step,
                    dict(
                        timestep=step,
                        **study.level(step, encoded.num_tokens),
                        criteria=score_timestep(encoded, step, usable),
                    ),
                )
                bar.advance(task)
    return [folder.load(step) for step in timesteps]


def scores_table(steps: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows ``timestep, noise_level, log_snr, criterion, block, feature, score, std, sem``."""
    return [
        dict(
            timestep=step['timestep'],
            noise_level=step['noise_level'],
            log_snr=step['log_snr'],
            **row,
        )
        for step in steps
        for row in step['criteria']
    ]
