# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""FLOPs and parameters of a model, those of the frozen part included."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mmaselect.models import ASelecTDiT

#: Name of the frozen part among a backbone's submodules, while it is one.
FROZEN = 'frozen'


@contextmanager
def frozen_parts_shown(model: nn.Module) -> Iterator[None]:
    """Make frozen parts submodules, where counters and printers of models find them.

    Otherwise they are not submodules: checkpoints, EMA and optimizers must leave them alone.

    Args:
        model: Any model; those of its modules that are an ASelecTDiT are changed meanwhile.
    """
    backbones = [module for module in model.modules() if isinstance(module, ASelecTDiT)]
    for backbone in backbones:
        backbone.add_module(FROZEN, backbone.dit)
    try:
        yield
    finally:
        for backbone in backbones:
            del backbone._modules[FROZEN]


@torch.no_grad()
def model_complexity(model: nn.Module, inputs: Tensor) -> dict[str, int]:
    """Multiplications and parameters of a pass.

    Counted by PyTorch's own ``FlopCounterMode`` from the operators that run. MMEngine's counter
    traces the model, and crashes where the frozen pass ends early within a submodule.

    Args:
        model: The model; put into eval mode.
        inputs: (B, 3, H, W), as the ``data_preprocessor`` gives it.

    Returns:
        dict: ``flops`` (two per multiply-add of matrix products, convolutions and attention),
        ``params``, and ``frozen_params``, those of them that are not trained.
    """
    model.eval()
    with FlopCounterMode(display=False) as counter:
        model(inputs)
    with frozen_parts_shown(model):
        parameters = list(model.parameters())
    return {
        'flops': counter.get_total_flops(),
        'params': sum(p.numel() for p in parameters),
        'frozen_params': sum(p.numel() for p in parameters if not p.requires_grad),
    }
