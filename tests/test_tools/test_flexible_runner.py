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
from mmaselect.launch.strategies import settle_strategy
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


@pytest.fixture
def run(tmp_path):
    """Train with some processes on the CPU; what the first one printed."""

    def run(path, folder, *more, world=2):
        flags = ('--no-validate', '--launcher', 'pytorch', *more)
        codes = run_ranks(
            lambda: train(path, '--work-dir', tmp_path / folder, *flags), tmp_path, world
        )
        log = (tmp_path / 'rank0.log').read_text()
        assert codes == [0] * world, log[-6000:]
        return log

    return run


@pytest.mark.thorough
def test_two_processes_and_a_resume(config, run, tmp_path, monkeypatch):
    """DDP by gloo; the pick of the checkpoint counts, and no second sweep runs."""
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


FSDP = "strategy = dict(type='FSDPStrategy')\n"
MIXED = (
    "strategy = dict(type='FSDPStrategy', model_wrapper=dict(\n"
    "    type='MMFullyShardedDataParallel', mixed_precision=dict(\n"
    "        param_dtype='bfloat16', reduce_dtype='float32', buffer_dtype='bfloat16')))\n"
)
DEEPSPEED = (
    "strategy = dict(type='DeepSpeedStrategy', zero_optimization=dict(stage={stage}){more})\n"
    "optim_wrapper = dict(_delete_=True, type='DeepSpeedOptimWrapper',\n"
    "    optimizer=dict(type='AdamW', lr=3e-3, weight_decay=0.01))\n"
)


def test_fsdp_on_two_processes(config, run, tmp_path):
    """The heads are sharded, and learn what DDP has them learn; nothing frozen is there."""
    run(config(2, FSDP), 'fsdp')
    _, sharded = check_run(tmp_path / 'fsdp', 2)
    run(config(2), 'ddp')
    _, whole = check_run(tmp_path / 'ddp', 2)
    whole = {name.removeprefix('module.'): value for name, value in whole.items()}
    assert sharded.keys() == whole.keys()
    for name, value in whole.items():
        torch.testing.assert_close(sharded[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.thorough
def test_fsdp_resumes_and_is_tested(config, run, tmp_path, monkeypatch):
    """Bit for bit with as many processes; with another number, too, and in bf16."""
    run(config(3, FSDP), 'whole')
    whole, weights = check_run(tmp_path / 'whole', 3)
    moments = read(tmp_path / 'whole' / 'iter_3.pth')['optimizer']['state']
    assert all((each['exp_avg'] != each['exp_avg_sq']).any() for each in moments.values())
    monkeypatch.setenv('MMASELECT_CACHE', str(tmp_path / 'another'))
    log = run(config(3, FSDP), 'cut', '--resume', tmp_path / 'whole' / 'iter_2.pth')
    assert 'comes from the checkpoint, nothing is selected' in log
    assert not (tmp_path / 'another' / 'selections').exists()
    again, found = check_run(tmp_path / 'cut', 3)
    assert again == whole
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], weights[name]) for name in weights)
    run(config(4, FSDP), 'cut', '--resume', world=3)  # and the schedule is longer
    check_run(tmp_path / 'cut', 4)
    run(config(2, MIXED), 'mixed')
    check_run(tmp_path / 'mixed', 2)

    import runpy

    tool = runpy.run_path(str(ROOT / 'tools' / 'test.py'))
    command = [str(config(3, FSDP)), str(tmp_path / 'whole' / 'iter_3.pth')]
    command += ['--work-dir', str(tmp_path / 'tested'), '--out', str(tmp_path / 'metrics.json')]
    command += ['--out-item', 'metrics', '--cfg-options', 'test_dataloader.dataset.num_collages=8']
    monkeypatch.setattr(sys, 'argv', ['test.py'])
    codes = run_ranks(lambda: tool['main']([*command, '--launcher', 'pytorch']), tmp_path)
    assert codes == [0, 0], (tmp_path / 'rank0.log').read_text()[-6000:]
    sharded = json.loads((tmp_path / 'metrics.json').read_text())
    assert run_ranks(lambda: tool['main']([*command, 'runner_type=Runner']), tmp_path, 1) == [0]
    one = json.loads((tmp_path / 'metrics.json').read_text())
    assert sharded['mIoU'] == one['mIoU'] > 0


@pytest.mark.thorough
@pytest.mark.parametrize('stage', [1, 3])
def test_deepspeed(config, run, tmp_path, monkeypatch, stage):
    """With DeepSpeed itself, where it is installed (DS_ACCELERATOR=cpu)."""
    pytest.importorskip('deepspeed.runtime.fp16.onebit')
    more = ', bf16=dict(enabled=True)' if stage == 3 else ''
    strategy = DEEPSPEED.format(stage=stage, more=more)
    run(config(3, strategy), 'whole')
    folder = tmp_path / 'whole' / 'iter_2.pth'
    names = {file.name for file in folder.iterdir()}
    assert len([name for name in names if 'optim_states' in name]) == 2
    for name in names:
        stored = torch.load(folder / name, weights_only=False)
        assert 'transformer_blocks' not in str(stored.keys() | (stored.get('module') or {}).keys())
    monkeypatch.setenv('MMASELECT_CACHE', str(tmp_path / 'another'))
    log = run(config(3, strategy), 'cut', '--resume', folder)
    assert 'comes from the checkpoint, nothing is selected' in log
    assert 'found in the checkpoint' in log, 'the curve is carried'
    assert not (tmp_path / 'another' / 'selections').exists()
    for name in names:
        one, other = (
            torch.load(tmp_path / run / 'iter_3.pth' / name, weights_only=False).get('module')
            for run in ('cut', 'whole')
        )
        assert one is None or all(torch.equal(one[key], other[key]) for key in one)


def test_strategies_that_cannot_work(config, monkeypatch):
    def settle(strategy, **changes):
        read = Config.fromfile(config(2, strategy))
        read.launcher = 'pytorch'
        for name, value in changes.items():
            if value is None:
                read.pop(name)
            else:
                read[name] = value
        settle_strategy(read)
        return read

    assert settle(FSDP).strategy.type == 'mmaselect.FSDPStrategy'
    assert settle(FSDP, runner_type='Runner').strategy.type == 'FSDPStrategy', 'it is not read'
    with pytest.raises(ValueError, match=r'FSDPStrategy shares a model.*runner_type=Runner'):
        settle(FSDP, launcher='none')
    with pytest.raises(ValueError, match=r'FSDPStrategy is read by a FlexibleRunner alone'):
        settle(FSDP, runner_type=None)
    local = FSDP.replace(')', ", state_dict_cfg='local')")
    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '1')
    with pytest.raises(ValueError, match=r"'local'.*no safe load reads.*--trust-checkpoint"):
        settle(local)
    monkeypatch.delenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD')
    assert settle(local).strategy.state_dict_cfg == 'local'
    wanted = DEEPSPEED.format(stage=1, more='')
    try:
        import deepspeed.runtime.fp16.onebit  # noqa: F401
    except ImportError:
        with pytest.raises(ImportError, match=r'pip install "deepspeed<0.19"'):
            settle(wanted)
        return
    assert settle(wanted).strategy.train_micro_batch_size_per_gpu > 1
    with pytest.raises(ValueError, match=r'optim_wrapper is OptimWrapper: set optim_wrapper='):
        settle(wanted, optim_wrapper=dict(type='OptimWrapper'))


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
    """What an accelerator would see: the order, and what is there to shard."""
    from mmengine._strategy import SingleDeviceStrategy

    from mmaselect.launch.strategies import FSDPStrategy

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
    # Our configs say so themselves, for runs that do not come through our tools.
    bases = sorted((ROOT / 'configs/_base_').glob('default_runtime_*.py'))
    assert len(bases) == 3
    for base in bases:
        assert Config.fromfile(base).env_cfg.dist_cfg.timeout == COLLECTIVE_TIMEOUT
