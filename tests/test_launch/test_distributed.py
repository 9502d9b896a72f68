# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
import pytest
from mmengine.config import Config
from mmengine.device import get_device

from mmaselect.launch.distributed import prepare_cpu_launch

pytestmark = pytest.mark.skipif(get_device() != 'cpu', reason='for machines without an accelerator')


def test_one_process_is_left_alone():
    config = Config(dict(model=dict(norm_cfg=dict(type='SyncBN'))))
    assert not prepare_cpu_launch(config)
    assert config.model.norm_cfg.type == 'SyncBN'


def test_a_launcher_that_needs_an_accelerator_is_named():
    with pytest.raises(ValueError, match="launcher 'slurm' needs one; on CPU use"):
        prepare_cpu_launch(Config(dict(launcher='slurm', model=dict())))
