# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Three calibration images around the pick, for the page of a selection."""

from __future__ import annotations

import logging
from pathlib import Path

from mmaselect.diffusion import FrozenDiT
from mmaselect.images import CalibrationSet, resize_and_crop
from mmaselect.images.thumbnails import try_thumbnails
from mmaselect.look.gathering import look_at
from mmaselect.report import save_report
from mmaselect.report.strip import Strip
from mmaselect.selection import SelectionResult, Sweep

logger = logging.getLogger(__name__)

#: Images that are shown.
SHOWN = 3
#: Images that are read: what all of them share is their positions.
READ = 8


def strip_timesteps(pick: int, steps: int) -> tuple[int, ...]:
    """Clean, before the pick, the pick, behind it, and the middle of the schedule.

    Example:
        >>> strip_timesteps(150, 1000)
        (0, 75, 150, 325, 500)
        >>> strip_timesteps(0, 1000)
        (0, 125, 250, 500)
    """
    middle = steps // 2
    behind = (pick + middle) // 2 if pick < middle else (pick + steps - 1) // 2
    chosen = {0, pick // 2, pick, behind, middle}
    if pick == 0:
        chosen.add(behind // 2)
    return tuple(sorted(chosen))


def selection_strip(dit: FrozenDiT, images: CalibrationSet, result: SelectionResult) -> Strip:
    """Read a few of the images that were scored, at a few timesteps around the pick.

    Up to 40 passes of one image.

    Args:
        dit: The model, with the picked block and feature among those it reads.
        images: The calibration set.
        result: The selection.

    Raises:
        ValueError: If an image cannot be read.
    """
    order = images.order[: result.num_images]
    places = list(dict.fromkeys(order))[:READ]
    pixels = [resize_and_crop(images.image(place), images.image_size) for place in places]
    key = result.cells[0] if result.cells else (result.blocks[0], result.feature.split(',')[0])
    look = look_at(
        pixels,
        dit,
        timesteps=list(strip_timesteps(result.timestep, dit.num_train_timesteps)),
        image_size=images.image_size,
        keys=[key],
        batch_size=4,
        position_images=len(pixels) if len(pixels) > SHOWN else 0,
        progress=False,
    )
    colors = look.content_colors or look.colors
    return Strip(
        title=f'{key[1]} of block {key[0]}',
        timesteps=look.timesteps,
        pick=result.timestep,
        noise_levels=look.noise_levels,
        images=look.images[:SHOWN],
        inputs={step: look.inputs[step][:SHOWN] for step in look.timesteps},
        colors={step: colors[step, key][:SHOWN] for step in look.timesteps},
    )


def try_strip(dit: FrozenDiT, images: CalibrationSet, result: SelectionResult) -> Strip | None:
    """The same, or None with a line in the log: a page is written without it."""
    try:
        return selection_strip(dit, images, result)
    except (OSError, ValueError, RuntimeError) as error:
        logger.warning('the page shows no images around the pick: %s', error)
        return None


def save_sweep_report(
    sweep: Sweep, result: SelectionResult, folder: str | Path, *, strict: bool = False
) -> list[Path]:
    """Write the files of :func:`~mmaselect.report.save_report`, with the images of a sweep.

    The page shows the images that were scored, and the first of them around the pick.

    Args:
        sweep: The sweep, with its model and its images.
        result: Result of the sweep.
        folder: Where the files go.
        strict: Raise once all that can be written is there.

    Returns:
        list[Path]: The files that were written.

    Raises:
        OSError: If ``strict``, and a file could not be written.
    """
    images = try_thumbnails(sweep.calibration, result.num_images)
    strip = try_strip(sweep.dit, sweep.calibration, result)
    return save_report(result, folder, images, strict=strict, strip=strip)
