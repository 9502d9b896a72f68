# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Puts the outcome of timestep selection where the toolbox's users look for it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

from mmaselect.models.backbones import ASelecTDiT
from mmaselect.openmmlab.registries import HOOKS
from mmaselect.report import save_selection_page
from mmaselect.report.notice import pick_notice
from mmaselect.report.plot import figure_pixels, save_figure, selection_figure
from mmaselect.selection import SelectionResult

#: Where a checkpoint keeps the results of its backbones, by their names in the model.
CHECKPOINT_KEY = 'mmaselect_selection'
#: What a result in the work directory is renamed to if it is not that of the run.
SET_ASIDE = 'selection_of_another_timestep'


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

    A file that cannot be written is a warning, and no end of the run.
    """

    #: The timestep is settled before other hooks look at the model.
    priority = 'VERY_HIGH'

    def __init__(self) -> None:
        self._carried: dict[str, Any] = {}

    def before_run(self, runner: Runner) -> None:
        due = bool(runner._resume or runner._load_from is not None)
        for _, backbone in _backbones(runner):
            backbone.pick.expects_checkpoint = due

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        carried = checkpoint.get(CHECKPOINT_KEY)
        self._carried = carried if isinstance(carried, dict) else {}

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        results = {
            name: backbone.selection_result.to_dict()
            for name, backbone in _backbones(runner)
            if backbone.selection_result is not None
        }
        if results:
            checkpoint[CHECKPOINT_KEY] = results

    def before_train(self, runner: Runner) -> None:
        for name, backbone in _backbones(runner):
            backbone.settle_pick()
            if backbone.pick.result is None:
                carried = self._carried_result(runner, name, backbone.timestep)
                backbone.pick.result = carried
                if carried is not None:
                    steps = backbone.dit.num_train_timesteps
                    notice = pick_notice(carried, steps, found='the checkpoint')
                    runner.logger.info(f'\n{notice}')
            self._publish(runner, backbone)

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
    def _publish(self, runner: Runner, backbone: ASelecTDiT) -> None:
        folder, result = Path(runner.work_dir), backbone.selection_result
        try_to_write(runner, folder, lambda: set_aside_others(runner, folder, backbone.timestep))
        if result is None:
            return
        text, picture = folder / 'selection.json', folder / 'selection.png'
        if try_to_write(runner, text, lambda: result.save(text)):
            runner.logger.info(f'timestep selection: {text}')
        if try_to_write(runner, picture, lambda: save_figure(selection_figure(result), picture)):
            runner.logger.info(f'timestep selection: {picture}')
        page, seen = folder / 'selection.html', backbone.pick.thumbnails
        if try_to_write(runner, page, lambda: save_selection_page(result, folder, seen)):
            runner.logger.info(f'timestep selection: {page}')
        if not runner._resume:  # else the visualizer has it from the first start
            try_to_write(runner, folder, lambda: self._visualize(runner, result))

    @staticmethod
    def _visualize(runner: Runner, result: SelectionResult) -> None:
        for name, curve in {result.criterion: result.curve, **result.others}.items():
            for point in curve.points:
                if point.score is not None:
                    runner.visualizer.add_scalar(
                        f'selection/{name}', point.score, step=point.timestep
                    )
        runner.visualizer.add_image('selection', figure_pixels(selection_figure(result)))


def _backbones(runner: Runner) -> Iterator[tuple[str, ASelecTDiT]]:
    """Name in the model and backbone, of all backbones of ours."""
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    for name, module in model.named_modules():
        if isinstance(module, ASelecTDiT):
            yield name, module


def try_to_write(runner: Runner, path: Path, write: Callable[[], Any]) -> bool:
    """Call a function that writes; a warning if it cannot. Returns whether it could."""
    try:
        write()
    except OSError as error:
        runner.logger.warning(f'timestep selection: {path} cannot be written ({error})')
        return False
    return True


def set_aside_others(runner: Runner, folder: Path, timestep: int) -> None:
    """Rename a selection in the work directory that is not that of the timestep in use."""
    path = folder / 'selection.json'
    if not path.is_file():
        return
    try:
        found: Any = SelectionResult.load(path).timestep
    except ValueError:
        found = 'that cannot be read'
    if found == timestep:
        return
    for suffix in ('.json', '.png', '.html'):
        if (folder / f'selection{suffix}').exists():
            os.replace(folder / f'selection{suffix}', folder / f'{SET_ASIDE}{suffix}')
    runner.logger.warning(
        f'timestep selection: this run reads at timestep {timestep}, but {path} had a timestep '
        f'{found}. It is now {folder / SET_ASIDE}.json'
    )
