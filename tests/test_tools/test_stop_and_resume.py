# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Runs of ``tools/train.py`` that are killed or told to stop end as if they had not been."""

import os
import pickle
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from forks import exit_code, forked, run_ranks
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))


@HOOKS.register_module()
class SignalAt(Hook):
    """Sends this process a signal while an iteration runs."""

    def __init__(self, at, number, rank=0):
        self.at, self.number, self.rank = at, number, rank

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.at and runner.rank == self.rank:
            os.kill(os.getpid(), self.number)


def train(*arguments):
    """``tools/train.py`` in this process."""
    import runpy

    tool = runpy.run_path(str(ROOT / 'tools' / 'train.py'))
    tool['main']([str(argument) for argument in arguments])


def read(path):
    return torch.load(path, weights_only=True)


def differences(one, other):
    """Names of the weights, optimizer states and learning rates that differ in two checkpoints."""

    def flat(value, name=''):
        if isinstance(value, dict):
            return {k: v for key in value for k, v in flat(value[key], f'{name}.{key}').items()}
        if isinstance(value, (list, tuple)):
            return flat(dict(enumerate(value)), name)
        return {name: value}

    parts = ('state_dict', 'optimizer', 'param_schedulers')
    one, other = (flat({part: read(path)[part] for part in parts}) for path in (one, other))
    assert one.keys() == other.keys()
    assert len(one) > 20
    return [
        name
        for name, value in one.items()
        if not (torch.equal(value, other[name]) if torch.is_tensor(value) else value == other[name])
    ]


@pytest.fixture
def demo(tiny_dit, tmp_path):
    """The demo config on a tiny model, without a sweep: 6 iterations, a checkpoint every third."""

    def config(name, hooks=()):
        path = tmp_path / f'{name}.py'
        path.write_text(
            f'_base_ = {str(ROOT / "configs/demo/aselect_dit-tiny_fcn_demo.py")!r}\n'
            f'model = dict(backbone=dict(pretrained={tiny_dit!r}, blocks=[2], timestep=100),\n'
            '             decode_head=dict(in_channels=16, dropout_ratio=0.5))\n'
            'train_dataloader = dict(batch_size=2, dataset=dict(num_collages=8))\n'
            'train_cfg = dict(max_iters=6)\n'
            'default_hooks = dict(checkpoint=dict(interval=3))\n'
            f'custom_hooks = {list(hooks)!r}\n'
        )
        return path

    return config


@pytest.fixture
def epochs(tiny_dit, tmp_path):
    """Classification by epochs of 3 batches, augmented in a worker process, with dropout."""
    rng = np.random.default_rng(0)
    for label in ('a', 'b'):
        (tmp_path / 'images' / label).mkdir(parents=True)
        for number in range(3):
            pixels = rng.integers(0, 256, (32, 32, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / 'images' / label / f'{number}.png')

    def config(name, hooks=()):
        path = tmp_path / f'{name}.py'
        path.write_text(f"""
default_scope = 'mmpretrain'
custom_imports = dict(imports=['mmaselect'])
model = dict(
    type='ImageClassifier',
    data_preprocessor=dict(num_classes=2, mean=[127.5] * 3, std=[127.5] * 3, to_rgb=True),
    backbone=dict(
        type='mmaselect.ASelecTDiT', pretrained={tiny_dit!r}, blocks=[2], timestep=100),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='StackedLinearClsHead', num_classes=2, in_channels=16, mid_channels=[8],
              dropout_rate=0.5))
train_dataloader = dict(
    batch_size=2, num_workers=1, sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='CustomDataset', data_root={str(tmp_path / 'images')!r},
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='RandomFlip', prob=0.5),
            dict(type='RandomCrop', crop_size=32, padding=8),
            dict(type='PackInputs')]))
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=0.01))
param_scheduler = dict(type='MultiStepLR', milestones=[1], gamma=0.1, by_epoch=True)
train_cfg = dict(by_epoch=True, max_epochs=3)
default_hooks = dict(checkpoint=dict(type='CheckpointHook', interval=1))
custom_hooks = {list(hooks)!r}
randomness = dict(seed=3)
""")
        return path

    return config


def test_a_run_that_was_killed_ends_bit_equal(demo, tmp_path):
    train(demo('whole'), '--work-dir', tmp_path / 'whole', '--no-validate')
    # Through `kill -9`, at the fifth iteration.
    killed = demo('killed', [dict(type='SignalAt', at=4, number=int(signal.SIGKILL))])
    start = (demo('again'), '--work-dir', tmp_path / 'killed', '--no-validate')
    assert exit_code(forked(lambda: train(killed, *start[1:]))) == -signal.SIGKILL
    assert not (tmp_path / 'killed' / 'iter_6.pth').exists()
    train(*start, '--resume')
    paths = [tmp_path / name / 'iter_6.pth' for name in ('whole', 'killed')]
    assert differences(*paths) == []
    assert differences(tmp_path / 'whole' / 'iter_3.pth', paths[0]), 'something was learned'


@pytest.mark.parametrize(
    'at, number, saved',
    [
        (4, signal.SIGTERM, 'iter_5.pth'),  # within the second epoch
        (5, signal.SIGINT, 'epoch_2.pth'),  # at its end
    ],
)
def test_a_run_that_was_stopped_ends_bit_equal(epochs, tmp_path, capfd, at, number, saved):
    train(epochs('whole'), '--work-dir', tmp_path / 'whole')
    stopped = epochs('stopped', [dict(type='SignalAt', at=at, number=int(number))])
    folder, handler = tmp_path / 'stopped_run', signal.getsignal(number)
    with pytest.raises(SystemExit) as stop:
        train(stopped, '--work-dir', folder)
    assert stop.value.code == 128 + number
    assert (folder / 'last_checkpoint').read_text() == str(folder / saved)
    said = ''.join(capfd.readouterr())
    assert f'stopped by {number.name} after iteration {at + 1} of 9' in said
    assert f'the checkpoint is {folder / saved}. To go on: ' in said
    assert signal.getsignal(number) == handler, 'the process has its own handlers again'
    train(epochs('again'), '--work-dir', folder, '--resume')
    assert differences(tmp_path / 'whole' / 'epoch_3.pth', folder / 'epoch_3.pth') == []


def test_all_processes_stop_at_one_iteration(demo, tmp_path):
    # Only the second process is told.
    config = demo('two', [dict(type='SignalAt', at=1, number=int(signal.SIGTERM), rank=1)])
    flags = ('--work-dir', tmp_path / 'two', '--no-validate', '--launcher', 'pytorch')
    codes = run_ranks(lambda: train(config, *flags), tmp_path)
    assert codes == [128 + signal.SIGTERM] * 2
    checkpoint = read((tmp_path / 'two' / 'last_checkpoint').read_text())
    assert checkpoint['meta']['iter'] == 3


def test_a_resume_of_nothing_stops(demo, tmp_path):
    empty = tmp_path / 'empty'
    with pytest.raises(FileNotFoundError, match=r'nothing to resume in .*empty'):
        train(demo('a'), '--work-dir', empty, '--resume')
    assert not empty.exists()


class _RunsCode:
    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def test_a_checkpoint_runs_no_code(demo, tmp_path):
    config = demo('a')
    train(config, '--work-dir', tmp_path, '--no-validate')
    checkpoint = read(tmp_path / 'iter_6.pth')
    trap = tmp_path / 'trap'
    torch.save({**checkpoint, 'extra': _RunsCode(str(trap))}, tmp_path / 'trap.pth')
    resume = ('--work-dir', tmp_path / 'b', '--no-validate', '--resume', tmp_path / 'trap.pth')
    with pytest.raises(ValueError, match=r'posix\.mkdir.*--trust-checkpoint'):
        train(config, *resume)
    # Whoever reads the file in this process, and however.
    with pytest.raises(pickle.UnpicklingError, match='mkdir'):
        torch.load(tmp_path / 'trap.pth', weights_only=False)
    assert not trap.exists()
    train(config, *resume, '--trust-checkpoint')
    assert trap.is_dir()
