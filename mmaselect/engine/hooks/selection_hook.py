# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Puts the outcome of timestep selection where the toolbox's users look for it."""

from __future__ import annotations

from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmaselect.models.backbones import ASelecTDiT
from mmaselect.registry import HOOKS
from mmaselect.selection.plot import figure_pixels, save_selection, selection_figure


@HOOKS.register_module()
class SelectionHook(Hook):
    """Writes ``selection.json`` and ``selection.png`` into the work directory before training, and
    sends the curve and the picture to the visualizer (local files, TensorBoard, W&B, ...).

    The curve's x axis is the timestep, under ``selection/CRITERION``.
    """

    priority = 'NORMAL'

    @master_only
    def before_train(self, runner: Runner) -> None:
        for module in runner.model.modules():
            if isinstance(module, ASelecTDiT) and module.selection_result is not None:
                self._publish(runner, module)

    @staticmethod
    def _publish(runner: Runner, backbone: ASelecTDiT) -> None:
        result = backbone.selection_result
        for path in save_selection(result, runner.work_dir):
            runner.logger.info(f'timestep selection: {path}')
        if runner._resume:
            return  # the visualizer has it from the first start
        for name, curve in {result.criterion: result.curve, **result.others}.items():
            for point in curve.points:
                if point.score is not None:
                    runner.visualizer.add_scalar(
                        f'selection/{name}', point.score, step=point.timestep
                    )
        runner.visualizer.add_image('selection', figure_pixels(selection_figure(result)))
