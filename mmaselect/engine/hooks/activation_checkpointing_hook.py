# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""``activation_checkpointing`` of modules that read a frozen backbone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from operator import attrgetter

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from mmaselect.openmmlab.registries import HOOKS


@HOOKS.register_module()
class ActivationCheckpointingHook(Hook):
    """Has the config's ``activation_checkpointing`` train modules whose inputs need no gradient.

    MMEngine uses PyTorch's reentrant checkpoints, which give a module no gradients unless one of
    its inputs has any; features of a frozen backbone have none. Non-reentrant ones have no such
    condition. And batch norms keep their running statistics while a pass is run a second time,
    which would count each batch twice.
    """

    priority = 'VERY_HIGH'

    def before_train(self, runner: Runner) -> None:
        names = runner.cfg.get('activation_checkpointing') or []
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        for name in [names] if isinstance(names, str) else names:
            module = attrgetter(name)(model)
            forward = getattr(module.forward, '__wrapped__', None)
            if forward is not None:
                module.forward = partial(
                    checkpoint,
                    forward,
                    use_reentrant=False,
                    context_fn=lambda module=module: (nullcontext(), _statistics_kept(module)),
                )


@contextmanager
def _statistics_kept(module: nn.Module) -> Iterator[None]:
    kept = [
        (norm, norm.momentum, norm.num_batches_tracked, norm.num_batches_tracked.clone())
        for norm in module.modules()
        if isinstance(norm, _BatchNorm) and norm.num_batches_tracked is not None
    ]
    for norm, *_ in kept:
        norm.momentum = 0.0  # the old statistics weigh all
    try:
        yield
    finally:
        for norm, momentum, counter, count in kept:
            norm.momentum = momentum
            counter.copy_(count)
