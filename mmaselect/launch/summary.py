# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""The closing lines of a training: the last validation, and the timestep that was picked."""

from pathlib import Path

from mmengine.dist import is_main_process
from mmengine.runner import Runner

from mmaselect.models import ASelecTDiT
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
    for module in runner.model.modules():
        if isinstance(module, ASelecTDiT):
            lines += _pick_lines(module.timestep, work_dir)
    checkpoint = work_dir / 'last_checkpoint'
    if checkpoint.is_file():
        lines.append(f'checkpoint: {checkpoint.read_text(encoding="utf-8").strip()}')
    return '\n'.join(lines)


def _short(value: float) -> str:
    """A metric in few digits; those of detection are fractions of 1, others are in percent."""
    return f'{value:.4f}' if abs(value) < 1 else f'{value:.2f}'


def _pick_lines(timestep: int, work_dir: Path) -> list[str]:
    """What there is to say of the timestep in use; files that tell of another are left out."""
    selection, plot = work_dir / 'selection.json', work_dir / 'selection.png'
    try:
        result = SelectionResult.load(selection)
    except (OSError, ValueError):
        result = None
    if result is None or result.timestep != timestep:
        return [f'timestep in use: {timestep} (given by the config or by a checkpoint)']
    lines = [
        f'picked timestep: {timestep} (criterion {result.criterion}, {result.num_images} images); '
        f'result: {selection}'
    ]
    page = work_dir / 'selection.html'
    lines += [f'plot of the pick: {plot}'] if plot.is_file() else []
    return lines + ([f'all of it as a page: {page}'] if page.is_file() else [])
