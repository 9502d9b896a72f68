# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Puts the outcome of timestep selection where the toolbox's users look for it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

from mmaselect.files import write_atomically
from mmaselect.models.backbones import ASelecTDiT
from mmaselect.openmmlab.registries import HOOKS
from mmaselect.report.notice import pick_notice
from mmaselect.report.plot import figure_pixels, save_figure, selection_figure
from mmaselect.report.selection_page import selection_page
from mmaselect.report.work_dir import (
    REPORT_SUFFIXES,
    find_selections,
    report_stem,
    set_aside_stem,
)
from mmaselect.selection import SelectionResult

#: Where a checkpoint keeps the results of its backbones, by their names in the model.
CHECKPOINT_KEY = 'mmaselect_selection'


@HOOKS.register_module()
class SelectionHook(Hook):
    """Writes ``selection.json``, ``selection.png`` and ``selection.html`` into the work directory
    before training, and sends the curve and the picture to the visualizer (local files,
    TensorBoard, W&B, ...).

    The curve's x axis is the timestep, under ``selection/CRITERION``.

    What is written is the pick in use. A checkpoint that is resumed or loaded decides it (see
    ``timestep`` of :class:`~mmaselect.models.ASelecTDiT`), and nothing is selected where it does.
    Checkpoints carry the result, so that it can be written wherever they are used. A result of
    another timestep that lies in the work directory is renamed.

    In a model with several of our backbones, each has files of its own, which end with its name in
    the model: ``selection_backbone.json``, ``selection_auxiliary.json``.

    A file that cannot be written is a warning, and no end of the run.
    """

    #: The timestep is settled before other hooks look at the model.
    priority = 'VERY_HIGH'

    def __init__(self) -> None:
        self._carried: dict[str, Any] = {}

    def before_run(self, runner: Runner) -> None:
        due = bool(runner._resume or runner._load_from is not None)
        for backbone in backbones_of(runner).values():
            backbone.pick.expects_checkpoint = due

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        carried = checkpoint.get(CHECKPOINT_KEY)
        self._carried = carried if isinstance(carried, dict) else {}

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        results = {
            # As JSON has it: nothing but plain values, so that it can be read without running code.
            name: json.loads(json.dumps(backbone.selection_result.to_dict()))
            for name, backbone in backbones_of(runner).items()
            if backbone.selection_result is not None
        }
        if results:
            checkpoint[CHECKPOINT_KEY] = results

    def before_train(self, runner: Runner) -> None:
        backbones = backbones_of(runner)
        stems = {name: report_stem(name if len(backbones) > 1 else '') for name in backbones}
        self._clear(runner, set(stems.values()))
        for name, backbone in backbones.items():
            backbone.settle_pick()
            if backbone.pick.result is None:
                carried = self._carried_result(runner, name, backbone.timestep)
                backbone.pick.result = carried
                if carried is not None:
                    steps = backbone.dit.num_train_timesteps
                    notice = pick_notice(carried, steps, found='the checkpoint')
                    runner.logger.info(f'\n{notice}')
            self._publish(runner, backbone, stems[name])

    def _carried_result(self, runner: Runner, name: str, timestep: int) -> SelectionResult | None:
        """The result that the checkpoint carries, if it is that of the timestep in use."""
        if name not in self._carried:
            return None
        try:
            result = SelectionResult.from_dict(self._carried[name])
            result.check()
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            runner.logger.warning(f'the checkpoint carries no sound selection result: {error!r}')
            return None
        return result if result.timestep == timestep else None

    @master_only
    def _clear(self, runner: Runner, stems: set[str]) -> None:
        """Set aside the selections of backbones that the model does not have."""
        folder = Path(runner.work_dir)
        for path in find_selections(folder).values():
            if path.stem not in stems:
                why = f'it is of a backbone that this model does not have ({", ".join(stems)})'
                try_to_write(runner, path, partial(set_aside, runner, folder, path.stem, why))

    @master_only
    def _publish(self, runner: Runner, backbone: ASelecTDiT, stem: str) -> None:
        folder, result = Path(runner.work_dir), backbone.selection_result
        try_to_write(
            runner, folder, lambda: set_aside_others(runner, folder, backbone.timestep, stem)
        )
        if result is None:
            return
        seen, strip = backbone.pick.thumbnails, backbone.pick.strip
        for suffix, write in (
            ('.json', result.save),
            ('.png', lambda path: save_figure(selection_figure(result), path)),
            ('.html', lambda path: write_atomically(path, selection_page(result, seen, strip))),
        ):
            path = folder / f'{stem}{suffix}'
            if try_to_write(runner, path, partial(write, path)):
                runner.logger.info(f'timestep selection: {path}')
        if not runner._resume:  # else the visualizer has it from the first start
            try_to_write(runner, folder, lambda: self._visualize(runner, result, stem))

    @staticmethod
    def _visualize(runner: Runner, result: SelectionResult, stem: str) -> None:
        for name, curve in {result.criterion: result.curve, **result.others}.items():
            for point in curve.points:
                if point.score is not None:
                    runner.visualizer.add_scalar(f'{stem}/{name}', point.score, step=point.timestep)
        runner.visualizer.add_image(stem, figure_pixels(selection_figure(result)))


def backbones_of(runner: Runner) -> dict[str, ASelecTDiT]:
    """All backbones of ours in the model of a run, by their names in it."""
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    return {
        name: module for name, module in model.named_modules() if isinstance(module, ASelecTDiT)
    }


def try_to_write(runner: Runner, path: Path, write: Callable[[], Any]) -> bool:
    """Call a function that writes; a warning if it cannot. Returns whether it could."""
    try:
        write()
    except OSError as error:
        runner.logger.warning(f'timestep selection: {path} cannot be written ({error})')
        return False
    return True


def set_aside_others(runner: Runner, folder: Path, timestep: int, stem: str) -> None:
    """Rename a selection in the work directory that is not that of the timestep in use."""
    path = folder / f'{stem}.json'
    if not path.is_file():
        return
    try:
        found: Any = SelectionResult.load(path).timestep
    except ValueError:
        found = 'that cannot be read'
    if found != timestep:
        why = f'it had a timestep {found}, and this run reads at timestep {timestep}'
        set_aside(runner, folder, stem, why)


def set_aside(runner: Runner, folder: Path, stem: str, why: str) -> None:
    """Rename the files of a selection, and say why."""
    aside = set_aside_stem(stem)
    for suffix in REPORT_SUFFIXES:
        if (folder / f'{stem}{suffix}').exists():
            os.replace(folder / f'{stem}{suffix}', folder / f'{aside}{suffix}')
    runner.logger.warning(
        f'timestep selection: {folder / stem}.json is now {folder / aside}.json: {why}'
    )
