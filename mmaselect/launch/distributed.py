# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Distributed runs on machines without an accelerator.

MMEngine's launchers set a CUDA device first, wrap the model for one, and leave SyncBN in: on a CPU
each of the three fails.
"""

import datetime
import logging
from typing import Any

import torch.distributed
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import all_reduce_params, init_dist
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner
from torch.nn.modules.batchnorm import _BatchNorm

#: Norm layers that synchronize over CUDA devices only, and their one-process selves.
_CPU_NORMS = {'SyncBN': 'BN', 'MMSyncBN': 'BN'}


#: Seconds that a process waits for the others. While one downloads a model, embeds a prompt or
#: picks a timestep, the ten minutes of PyTorch pass.
COLLECTIVE_TIMEOUT = 2 * 3600


def wait_for_each_other(config: Config) -> None:
    """Give the processes of a distributed run :data:`COLLECTIVE_TIMEOUT`, unless a config does.

    Args:
        config: The run's config; changed in place.
    """
    given = (config.get('env_cfg') or {}).get('dist_cfg') or {}
    dist = {'backend': 'nccl', 'timeout': COLLECTIVE_TIMEOUT, **given}
    config.merge_from_dict({'env_cfg': {'dist_cfg': dist}})


def prepare_cpu_launch(config: Config) -> bool:
    """Make a distributed run work on a machine without an accelerator; else do nothing.

    Starts a gloo process group (MMEngine keeps one that is there), has the model wrapped without
    device ids, and keeps BN, or puts it in SyncBN's place; the runner then needs the hook
    :class:`AverageNormStatistics`.

    Args:
        config: The run's config, with its ``launcher``; changed in place.

    Returns:
        bool: Whether the run is a distributed one on CPU.

    Raises:
        ValueError: If it is, and the launcher is not ``'pytorch'``.
    """
    launcher = config.get('launcher', 'none')
    if launcher == 'none' or get_device() != 'cpu':
        return False
    _check_cpu_launcher(launcher)
    dist = config.get('env_cfg', {}).get('dist_cfg', {})
    asked, timeout = dist.get('backend', 'nccl'), dist.get('timeout')
    config.merge_from_dict({'env_cfg.dist_cfg.backend': 'gloo'})
    config.model_wrapper_cfg = {
        'type': 'MMDistributedDataParallel',
        'broadcast_buffers': False,
        'find_unused_parameters': config.get('find_unused_parameters', False),
        **(config.get('model_wrapper_cfg') or {}),
        'device_ids': None,
    }
    if 'runner_type' in config:
        # A FlexibleRunner has the model wrapped by its strategy.
        strategy = config.get('strategy') or {'type': 'DDPStrategy'}
        if str(strategy['type']).rpartition('.')[2] == 'DDPStrategy':
            strategy['model_wrapper'] = dict(
                config.model_wrapper_cfg, **(strategy.get('model_wrapper') or {}), device_ids=None
            )
            config.strategy = strategy
    synchronized = _replace_norms(config.model) > 0 or config.get('sync_bn') is not None
    config.sync_bn = None  # else MMEngine turns every BN into SyncBN

    torch.distributed.init_process_group(
        'gloo', timeout=None if timeout is None else datetime.timedelta(seconds=timeout)
    )
    if torch.distributed.get_rank() == 0:
        print_log(
            f'No accelerator was found: {torch.distributed.get_world_size()} processes on CPU, '
            f'backend gloo instead of {asked}'
            + (', BN instead of SyncBN.' if synchronized else '.'),
            logger='current',
            level=logging.WARNING,
        )
    return True


def _check_cpu_launcher(launcher: str) -> None:
    if launcher != 'pytorch':
        raise ValueError(
            f'No accelerator was found, and launcher {launcher!r} needs one; on CPU use '
            "launcher 'pytorch' (torchrun, tools/dist_train.sh, tools/dist_test.sh)."
        )


def join_processes(launcher: str, device: str) -> None:
    """Join the process group of a tool that needs no runner, on any device.

    Args:
        launcher: What started the processes.
        device: ``'cpu'``, for which MMEngine's own start looks for a CUDA device; or another one.

    Raises:
        ValueError: If the launcher needs an accelerator.
    """
    if device != 'cpu':
        init_dist(launcher, backend='nccl', timeout=COLLECTIVE_TIMEOUT)
        return
    _check_cpu_launcher(launcher)
    wait = datetime.timedelta(seconds=COLLECTIVE_TIMEOUT)
    torch.distributed.init_process_group('gloo', timeout=wait)


class AverageNormStatistics(Hook):
    """Averages the running statistics of BN layers over the processes, after each iteration.

    BN sees the batch of its own process only. Without this, every process would validate with
    statistics of its own, and a checkpoint, which holds the first one's, would test differently.
    """

    priority = 'HIGH'  # before anything saves, copies or validates the model

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        all_reduce_params(
            [
                statistic
                for module in runner.model.modules()
                if isinstance(module, _BatchNorm) and module.training and module.track_running_stats
                for statistic in (module.running_mean, module.running_var)
            ],
            op='mean',
        )


def _replace_norms(node: Any) -> int:
    """Replace synchronized norms in a nested config; returns how many settings were changed."""
    if isinstance(node, dict):
        kind = node.get('type')
        changed = 0
        if isinstance(kind, str) and kind in _CPU_NORMS:
            node['type'] = _CPU_NORMS[kind]
            changed = 1
        return changed + sum(_replace_norms(value) for value in node.values())
    if isinstance(node, (list, tuple)):
        return sum(_replace_norms(value) for value in node)
    return 0


def leave_process_group() -> None:
    """End a distributed run together; without one, do nothing.

    A process that exits with its gloo threads alive may abort ("terminate called without an active
    exception"), and the launcher then reports a finished run as a failed one.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
