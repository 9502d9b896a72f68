# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
import io
import logging
import socket

import pytest
import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.logging import MMLogger

from mmaselect.launch.distributed import leave_process_group, prepare_cpu_launch

pytestmark = pytest.mark.skipif(get_device() != 'cpu', reason='for machines without an accelerator')


def test_one_process_is_left_alone():
    config = Config(dict(model=dict(norm_cfg=dict(type='SyncBN'))))
    assert not prepare_cpu_launch(config)
    assert config.model.norm_cfg.type == 'SyncBN'


def test_a_launcher_that_needs_an_accelerator_is_named():
    with pytest.raises(ValueError, match="launcher 'slurm' needs one; on CPU use"):
        prepare_cpu_launch(Config(dict(launcher='slurm', model=dict())))


@pytest.fixture
def alone(monkeypatch):
    """A process that a launcher started, the only one of its run."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    place = dict(MASTER_ADDR='127.0.0.1', MASTER_PORT=port, RANK=0, WORLD_SIZE=1, LOCAL_RANK=0)
    for name, value in place.items():
        monkeypatch.setenv(name, str(value))
    yield
    leave_process_group()
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize(
    ('norm', 'said'), [('SyncBN', 'gloo instead of nccl, BN instead of SyncBN.'), ('BN', 'nccl.')]
)
def test_a_run_on_a_cpu_is_prepared_and_says_so(alone, norm, said):
    model = dict(heads=[dict(norm_cfg=dict(type=norm))])
    config = Config(dict(launcher='pytorch', model=model))
    if norm == 'SyncBN':
        config.find_unused_parameters = True
    logger, handler = MMLogger.get_current_instance(), logging.StreamHandler(io.StringIO())
    logger.addHandler(handler)
    assert prepare_cpu_launch(config) is True
    logger.removeHandler(handler)
    assert torch.distributed.get_backend() == 'gloo' == config.env_cfg.dist_cfg.backend
    assert config.model.heads[0].norm_cfg.type == 'BN' and config.sync_bn is None
    assert config.model_wrapper_cfg == dict(
        type='MMDistributedDataParallel',
        broadcast_buffers=False,
        find_unused_parameters=norm == 'SyncBN',
        device_ids=None,
    )
    assert handler.stream.getvalue().strip().endswith(said)
