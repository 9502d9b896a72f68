# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""The closing lines of a training: the last validation, and the timestep that was picked."""

import json
from pathlib import Path

from mmengine.dist import is_main_process
from mmengine.runner import Runner


def print_summary(runner: Runner) -> None:
    """Print :func:`summarize`'s lines, once for all processes of a run."""
    if is_main_process():
        print(summarize(runner), flush=True)


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
            'last validation: ' + ', '.join(f'{key} {value:.2f}' for key, value in metrics.items())
        )
    work_dir = Path(runner.work_dir)
    selection = work_dir / 'selection.json'
    if selection.is_file():
        result = json.loads(selection.read_text(encoding='utf-8'))
        lines.append(
            f'picked timestep: {result["timestep"]} (criterion {result["criterion"]}, '
            f'{result["num_images"]} images); result: {selection}'
        )
    plot = work_dir / 'selection.png'
    if plot.is_file():
        lines.append(f'plot of the pick: {plot}')
    checkpoint = work_dir / 'last_checkpoint'
    if checkpoint.is_file():
        lines.append(f'checkpoint: {checkpoint.read_text(encoding="utf-8").strip()}')
    return '\n'.join(lines)
