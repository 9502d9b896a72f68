# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""FSDP and DeepSpeed in MMEngine's FlexibleRunner, for a model with a frozen part.

The frozen part is in no list of parameters, so the engines neither shard it nor save it. What is
here mends where MMEngine's strategies and the present PyTorch or DeepSpeed differ, and makes
checkpoints that are read without running code.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import mmengine._strategy as engines
import torch
from mmengine.config import Config, ConfigDict
from mmengine.device import get_device
from mmengine.dist import all_gather_object
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

from mmaselect.launch.config import type_name
from mmaselect.openmmlab.registries import STRATEGIES
from mmaselect.untrusted import ONLY_WEIGHTS

#: Strategies that share a model among processes.
_SHARED = ('DDPStrategy', 'FSDPStrategy', 'DeepSpeedStrategy')
_OPTIM_WRAPPER = 'DeepSpeedOptimWrapper'


def settle_strategy(config: Config) -> None:
    """Check the strategy of a config, and put the classes of this module in MMEngine's place.

    Args:
        config: The run's config, with its ``launcher``; changed in place.

    Raises:
        ImportError: If DeepSpeed is asked for, and is not installed or does not fit MMEngine.
        ValueError: If the strategy cannot work with the rest of the config.
    """
    strategy = config.get('strategy')
    if strategy is None:
        return
    if 'runner_type' not in config:
        raise ValueError(
            f'strategy={type_name(strategy)} is read by a FlexibleRunner alone, and the config has '
            f"no runner_type: set runner_type='FlexibleRunner', or leave the strategy out"
        )
    if config.runner_type != 'FlexibleRunner':
        return
    name = type_name(strategy)
    if name in _SHARED and config.get('launcher', 'none') == 'none':
        raise ValueError(
            f'{name} shares a model among processes, and this is one process without a launcher: '
            f'start it by torchrun with --launcher pytorch (tools/dist_train.sh), or take one '
            f'process with --cfg-options runner_type=Runner'
        )
    if name == 'FSDPStrategy':
        kind = strategy.get('state_dict_cfg', 'full')
        if kind != 'full' and os.environ.get(ONLY_WEIGHTS) == '1':
            raise ValueError(
                f"state_dict_cfg={kind!r} of FSDPStrategy writes pickles of PyTorch's "
                f'ShardedTensor, which no safe load reads. Leave it out (one file that any number '
                f'of processes resumes), or add --trust-checkpoint'
            )
        strategy.type = 'mmaselect.FSDPStrategy'
    elif name == 'DeepSpeedStrategy':
        _check_deepspeed(config)
        strategy.type = 'mmaselect.DeepSpeedStrategy'
        loader = config.get('train_dataloader') or {}
        # MMEngine does so for its own class.
        strategy.setdefault('train_micro_batch_size_per_gpu', loader.get('batch_size') or 1)


def _check_deepspeed(config: Config) -> None:
    try:
        # Both are what MMEngine asks for.
        import deepspeed.runtime.fp16.onebit
        import deepspeed.runtime.zero  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f'DeepSpeedStrategy needs DeepSpeed with its 1-bit optimizers, which MMEngine imports '
            f'({error}): pip install "deepspeed<0.19"'
        ) from error
    name = type_name(config.get('optim_wrapper') or {})
    if name != _OPTIM_WRAPPER:
        raise ValueError(
            f'DeepSpeedStrategy steps the optimizer itself, and optim_wrapper is {name or None}: '
            f"set optim_wrapper=dict(_delete_=True, type='{_OPTIM_WRAPPER}', optimizer=...). "
            f'Gradients are clipped by gradient_clipping of the strategy, and bf16=dict('
            f'enabled=True) of the strategy takes the place of --amp'
        )


@STRATEGIES.register_module()
class FSDPStrategy(engines.FSDPStrategy):
    """MMEngine's FSDPStrategy, which runs on CPUs too and resumes with the present PyTorch.

    Args:
        state_dict_cfg: As in MMEngine, but ``'full'`` by default: one file, written by the first
            process, that any number of processes resumes and ``tools/test.py`` reads.
        kwargs: The other arguments of MMEngine's.
    """

    model_wrapper: dict[str, Any] | None

    def __init__(self, *, state_dict_cfg: str | dict[str, Any] = 'full', **kwargs: Any) -> None:
        super().__init__(state_dict_cfg=state_dict_cfg, **kwargs)

    def _wrap_model(self, model: nn.Module) -> nn.Module:
        if get_device() == 'cpu':
            # MMEngine gives the local rank, which FSDP takes for the number of a GPU.
            self.model_wrapper = {
                'type': 'MMFullyShardedDataParallel',
                **(self.model_wrapper or {}),
                'device_id': torch.device('cpu'),
            }
        return super()._wrap_model(model)

    def optim_state_dict(self) -> dict[str, Any]:
        """The optimizer's state, whole.

        PyTorch gathers all kinds of it (the two moments of Adam) in one buffer, and has them leave
        the accelerator in between. On CPUs nothing is copied, and all would be the last one.
        """
        if get_device() != 'cpu' or not self._is_full_state_dict():
            return super().optim_state_dict()
        optimizer = self.optim_wrapper.optimizer
        local = optimizer.state_dict()
        kinds = all_gather_object(sorted({kind for one in local['state'].values() for kind in one}))
        whole: dict[str, Any] = {}
        for kind in sorted(set().union(*kinds)):
            states = {key: {kind: one[kind]} for key, one in local['state'].items() if kind in one}
            found = FullyShardedDataParallel.optim_state_dict(
                self.model, optimizer, {**local, 'state': states}
            )
            for name, state in found.pop('state', {}).items():  # the first process has all
                whole.setdefault('state', {}).setdefault(name, {}).update(state)
            whole.update(found)
        return whole

    def load_optim_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the optimizer's state: MMEngine passes it in the order of PyTorch 2.0."""
        sharded = FullyShardedDataParallel.optim_state_dict_to_load(
            model=self.model, optim=self.optim_wrapper.optimizer, optim_state_dict=state_dict
        )
        self.optim_wrapper.load_state_dict(sharded)


@STRATEGIES.register_module()
class DeepSpeedStrategy(engines.DeepSpeedStrategy):
    """MMEngine's DeepSpeedStrategy, with the runner's hooks and in plain types.

    MMEngine's writes its own classes into checkpoints and tells no hook of them, so that the pick's
    curve is not carried, and a safe load refuses the files.

    Args:
        inputs_to_half: As in MMEngine, but the images by default where a precision of 16 bits is
            enabled.
        kwargs: The other arguments of MMEngine's.
    """

    def __init__(self, *, inputs_to_half: list[int | str] | None = None, **kwargs: Any) -> None:
        kwargs = {
            name: value.to_dict() if isinstance(value, ConfigDict) else value
            for name, value in kwargs.items()
        }
        halves = [kwargs.get(name) or {} for name in ('fp16', 'bf16')]
        if inputs_to_half is None and any(half.get('enabled') for half in halves):
            inputs_to_half = ['inputs']
        super().__init__(inputs_to_half=inputs_to_half, **kwargs)

    def save_checkpoint(
        self,
        filename: str,
        *,
        extra_ckpt: dict[str, Any] | None = None,
        callback: Callable[[dict], Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Save as MMEngine does, after the hooks have seen what is saved next to the weights."""
        extra_ckpt = {} if extra_ckpt is None else extra_ckpt
        if callback is not None:
            callback(extra_ckpt)
        super().save_checkpoint(filename, extra_ckpt=extra_ckpt, **kwargs)

    def scheduler_state_dict(self) -> Any:
        """The schedulers' state in plain types."""
        from mmaselect.launch.hooks.plain_checkpoint_hook import to_plain

        return to_plain(super().scheduler_state_dict())

    def load_checkpoint(
        self, filename: str, *, callback: Callable[[dict], Any] | None = None, **kwargs: Any
    ) -> dict:
        """Load the weights, and let the hooks see what was saved next to them."""
        _allow_deepspeed_objects()
        return _seen(super().load_checkpoint(filename, **kwargs), callback)

    def resume(
        self, filename: str, *, callback: Callable[[dict], Any] | None = None, **kwargs: Any
    ) -> dict:
        """Resume, and let the hooks see what was saved next to the weights."""
        _allow_deepspeed_objects()
        return _seen(super().resume(filename, **kwargs), callback)


def _seen(checkpoint: dict, callback: Callable[[dict], Any] | None) -> dict:
    if callback is not None:
        callback(checkpoint)
    return checkpoint


def _allow_deepspeed_objects() -> None:
    """Let a safe load read what DeepSpeed's optimizers store: numbers, by name."""
    from deepspeed.runtime.fp16 import loss_scaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    torch.serialization.add_safe_globals(
        [loss_scaler.LossScaler, loss_scaler.DynamicLossScaler, ZeroStageEnum, fragment_address]
    )
