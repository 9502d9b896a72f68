# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""``runner_type='FlexibleRunner'``: MMEngine's way to other engines than its own Runner."""

import json
import sys
from pathlib import Path

import pytest
import torch
from forks import run_ranks
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.model import is_model_wrapper
from mmengine.runner import FlexibleRunner

from mmaselect.launch.cli import build_model
from mmaselect.launch.distributed import COLLECTIVE_TIMEOUT, wait_for_each_other
from mmaselect.models import ASelecTDiT

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

pytestmark = pytest.mark.skipif(get_device() != 'cpu', reason='for machines without an accelerator')


def train(*arguments):
    """``tools/train.py`` in this process."""
    import runpy

    tool = runpy.run_path(str(ROOT / 'tools' / 'train.py'))
    tool['main']([str(argument) for argument in arguments])


@pytest.fixture
def config(tiny_dit, tmp_path):
    """The demo, which picks its timestep: 3 iterations, a checkpoint after each."""

    def write(iterations=3, strategy=''):
        path = tmp_path / f'flexible_{iterations}.py'
        path.write_text(
            f'_base_ = {str(ROOT / "configs/demo/aselect_dit-tiny_fcn_demo.py")!r}\n'
            f'model = dict(backbone=dict(pretrained={tiny_dit!r}, blocks=[2],\n'
            f"    selection=dict(_delete_=True, criterion='HighFrequencyRatio', others=[],\n"
            f'    timesteps=[0, 300, 600], num_images=16)),\n'
            f'    decode_head=dict(in_channels=16))\n'
            f'train_dataloader = dict(dataset=dict(num_collages=16), num_workers=0)\n'
            f'train_cfg = dict(max_iters={iterations}, val_interval=9)\n'
            f'default_hooks = dict(checkpoint=dict(interval=1))\n'
            f"runner_type = 'FlexibleRunner'\n{strategy}"
        )
        return path

    return write


def read(path):
    return torch.load(path, weights_only=True)


def check_run(folder, iterations):
    """The pick is published, and the checkpoint holds it and nothing frozen."""
    result = json.loads((folder / 'selection.json').read_text())
    weights = read(folder / f'iter_{iterations}.pth')['state_dict']
    # MMEngine's DDP strategy keeps the wrapper's prefix, and takes it off when it loads.
    (pick,) = [name for name in weights if name.endswith('backbone.picked_timestep')]
    assert int(weights[pick]) == result['timestep']
    assert not [name for name in weights if 'transformer_blocks' in name]
    assert len(weights) > 5
    return result, weights


@pytest.mark.parametrize('strategy', ['', "strategy = dict(type='SingleDeviceStrategy')\n"])
def test_one_process(config, tmp_path, strategy):
    train(config(2, strategy), '--work-dir', tmp_path / 'out', '--no-validate')
    check_run(tmp_path / 'out', 2)


def test_two_processes_and_a_resume(config, tmp_path, monkeypatch):
    """DDP by gloo; the pick of the checkpoint counts, and no second sweep runs."""
    flags = ('--no-validate', '--launcher', 'pytorch')

    def run(path, folder, *more):
        codes = run_ranks(
            lambda: train(path, '--work-dir', tmp_path / folder, *flags, *more), tmp_path
        )
        log = (tmp_path / 'rank0.log').read_text()
        assert codes == [0, 0], log[-6000:]
        return log

    run(config(3), 'whole')
    whole, weights = check_run(tmp_path / 'whole', 3)
    run(config(2), 'cut')
    # Another cache: a sweep would have to run, and would say so.
    monkeypatch.setenv('MMASELECT_CACHE', str(tmp_path / 'another'))
    log = run(config(3), 'cut', '--resume')
    assert not (tmp_path / 'another' / 'selections').exists(), log[-3000:]
    again, found = check_run(tmp_path / 'cut', 3)
    assert again['timestep'] == whole['timestep']
    assert found.keys() == weights.keys()


class Moves(torch.nn.Module):
    """A model with a backbone, which notes where it was when its weights were initialized."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.head = torch.nn.Linear(2, 2)
        self.seen = []
        self.moves = []

    def _apply(self, fn, *args, **kwargs):
        self.moves.append(len(self.seen))
        return super()._apply(fn, *args, **kwargs)

    def init_weights(self):
        self.seen.append(len(self.moves))


@pytest.mark.parametrize('name', ['SingleDeviceStrategy', 'FSDPStrategy'])
def test_the_model_is_moved_before_it_selects(tiny_dit, tmp_path, name, monkeypatch):
    """FSDP has no CPU: what is looked at is the order, and what it is given to shard."""
    from mmengine._strategy import FSDPStrategy, SingleDeviceStrategy

    model = Moves(ASelecTDiT(tiny_dit, blocks=[2], timestep=100))
    runner = FlexibleRunner.__new__(FlexibleRunner)
    runner.model = model
    build_model(runner)
    assert runner.model is model
    assert model.moves == [0]
    kind = dict(SingleDeviceStrategy=SingleDeviceStrategy, FSDPStrategy=FSDPStrategy)[name]
    strategy = kind.__new__(kind)
    strategy.dispatch_kwargs, strategy.skip_init_weights = {}, False
    assert strategy.build_model(model) is model
    strategy._init_model_weights(model)
    assert model.seen == [1], 'moved before it was initialized'
    # The parameters and buffers that would be sharded and saved.
    frozen = {id(value) for value in model.backbone.dit.parameters()}
    assert len(frozen) > 20
    assert not [name for name, value in model.named_parameters() if id(value) in frozen]
    assert not is_model_wrapper(runner.model)


def test_processes_wait_long_enough():
    config = Config(dict(env_cfg=dict(dist_cfg=dict(backend='nccl'))))
    wait_for_each_other(config)
    assert config.env_cfg.dist_cfg.timeout == COLLECTIVE_TIMEOUT > 600
    for given in (dict(), dict(env_cfg=dict(dist_cfg=dict(timeout=5)))):
        config = Config(given)
        wait_for_each_other(config)
        assert config.env_cfg.dist_cfg.timeout == (5 if given else COLLECTIVE_TIMEOUT)
