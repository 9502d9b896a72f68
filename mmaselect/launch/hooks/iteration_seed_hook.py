# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Makes what a training step draws at random a function of the iteration."""

from __future__ import annotations

from typing import Any

from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmaselect.datasets.seeded import seed_everything
from mmaselect.launch.determinism import let_the_rest_warn
from mmaselect.openmmlab.registries import HOOKS


@HOOKS.register_module()
class IterationSeedHook(Hook):
    """Seeds Python, NumPy and PyTorch before each iteration from (seed, iteration, rank).

    Dropout, mixing of batches and the like then draw the same in a run that was resumed as in one
    that was never stopped. Data augmentation has seeds of its own: see
    :class:`mmaselect.datasets.SeededDataset`. In deterministic mode, operations that cannot be so
    warn: see :func:`mmaselect.launch.determinism.let_the_rest_warn`.
    """

    priority = 'VERY_HIGH'

    def before_train(self, runner: Runner) -> None:
        let_the_rest_warn()

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        seed_everything([runner.seed, runner.iter, get_rank()])
