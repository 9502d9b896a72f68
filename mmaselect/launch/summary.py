# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""The closing lines of a training: the last validation, and the timestep that was picked."""

from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.runner import Runner

from mmaselect.diffusion.joining import maps_in_words
from mmaselect.engine.hooks.selection_hook import backbones_of
from mmaselect.report.work_dir import REPORT_SUFFIXES, report_stem
from mmaselect.selection import SelectionResult
from mmaselect.terminal.boxes import boxed


def print_summary(runner: Runner) -> None:
    """Print :func:`summarize`'s lines in a box, once for all processes of a run."""
    if is_main_process():
        print(boxed(summarize(runner).splitlines(), 'mmaselect'), flush=True)


def summarize(runner: Runner) -> str:
    """What a run ended with, for people.

    Args:
        runner: A runner whose training has ended.

    Returns:
        str: One line each for the last validation's metrics, the pick and its plot, and the
        checkpoint; a line is left out where the run made no such thing.
    """
    lines = []
    scalars = runner.message_hub.log_scalars
    metrics = {
        name.removeprefix('val/'): scalars[name].current()
        for name in scalars
        if name.startswith('val/') and not name.endswith(('/time', '/data_time'))
    }
    if metrics:
        lines.append(
            'last validation: '
            + ', '.join(f'{key} {_short(value)}' for key, value in metrics.items())
        )
    work_dir = Path(runner.work_dir)
    backbones = backbones_of(runner)
    for name, backbone in backbones.items():
        name = name if len(backbones) > 1 else ''
        lines += _pick_lines(backbone.timestep, work_dir / report_stem(name), name)
    checkpoint = work_dir / 'last_checkpoint'
    if checkpoint.is_file():
        lines.append(f'checkpoint: {checkpoint.read_text(encoding="utf-8").strip()}')
    return '\n'.join(lines)


def print_test_summary(
    runner: Runner, checkpoint: str, metrics: Mapping[str, Any], files: Sequence[str | None]
) -> None:
    """Print a box with what was tested, at which timestep and place, and the metrics.

    Args:
        runner: A runner whose test has ended.
        checkpoint: The checkpoint.
        metrics: What the test gave.
        files: What was written; None for what was not asked for.
    """
    if is_main_process():
        lines = [f'checkpoint: {checkpoint}', *_places(runner)]
        # NumPy's numbers too, which the toolboxes' metrics give.
        numbers = {k: float(v) for k, v in metrics.items() if isinstance(v, Real)}
        lines += [', '.join(f'{name} {_short(value)}' for name, value in numbers.items())]
        lines += [f'written: {file}' for file in files if file]
        print(boxed(lines, 'mmaselect'), flush=True)


def _places(runner: Runner) -> list[str]:
    """Where each backbone was read, and who said so."""
    lines = []
    backbones = backbones_of(runner)
    for name, backbone in backbones.items():
        plan = backbone.pick.plan
        from_config = not plan.is_automatic and backbone.timestep in plan.steps
        source = 'the config' if from_config else 'the checkpoint'
        start = f'{name}: ' if len(backbones) > 1 else ''
        lines.append(
            f'{start}timestep {", ".join(map(str, backbone.timesteps))} (from {source}), '
            f'{maps_in_words(backbone.dit.maps)}'
        )
    return lines


def _short(value: float) -> str:
    """A metric in few digits; those of detection are fractions of 1, others are in percent."""
    return f'{value:.4f}' if abs(value) < 1 else f'{value:.2f}'


def _pick_lines(timestep: int, stem: Path, backbone: str) -> list[str]:
    """What there is to say of the timestep in use; files that tell of another are left out."""
    selection, plot, page = (stem.with_name(stem.name + suffix) for suffix in REPORT_SUFFIXES)
    start = f'{backbone}: ' if backbone else ''
    try:
        result = SelectionResult.load(selection)
    except (OSError, ValueError):
        result = None
    if result is None or result.timestep != timestep:
        return [f'{start}timestep in use: {timestep} (given by the config or by a checkpoint)']
    lines = [
        f'{start}picked timestep: {timestep} (criterion {result.criterion}, {result.num_images} '
        f'images); result: {selection}'
    ]
    lines += [f'plot of the pick: {plot}'] if plot.is_file() else []
    return lines + ([f'all of it as a page: {page}'] if page.is_file() else [])
