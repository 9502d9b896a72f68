# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Runs on an accelerator that is full, or that is to be deterministic, as the tools meet them."""

import json
import os
import runpy
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from forks import exit_code, forked
from torch.nn.modules.module import register_module_forward_pre_hook

from mmaselect.cli import main

ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def full_at(kind):
    """Memory runs out when a module of some class is called."""

    def fail(module, args):
        if type(module).__name__ == kind:
            raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 20.00 GiB')

    handle = register_module_forward_pre_hook(fail)
    try:
        yield
    finally:
        handle.remove()


@pytest.fixture
def train(tiny_dit, tmp_path):
    """``tools/train.py`` of the demo with another model, in this process."""

    def run(*options, timestep=100):
        path = tmp_path / 'small.py'
        path.write_text(
            f'_base_ = {str(ROOT / "configs/demo/aselect_dit-tiny_fcn_demo.py")!r}\n'
            f'model = dict(backbone=dict(pretrained={tiny_dit!r}, blocks=[2], '
            f'timestep={timestep!r},\n    selection=dict(_delete_=True, '
            f"criterion='HighFrequencyRatio', others=[], timesteps=[0, 300], num_images=16)),\n"
            f'    decode_head=dict(in_channels=16))\n'
            f'train_dataloader = dict(dataset=dict(num_collages=16), num_workers=0)\n'
            f'train_cfg = dict(max_iters=2, val_interval=9)\n'
            f'default_hooks = dict(checkpoint=dict(interval=1))\n'
        )
        tool = runpy.run_path(str(ROOT / 'tools' / 'train.py'))
        tool['main']([str(path), '--work-dir', str(tmp_path / 'out'), '--no-validate', *options])

    return run


WORDS = ('batch_size', 'dtype', 'GiB', 'Tried to allocate 20.00 GiB')


def test_a_full_device_in_training(train):
    with full_at('ConvModule'), pytest.raises(torch.OutOfMemoryError) as caught:
        train()
    for word in (
        *WORDS,
        'out of memory in training',
        'train_dataloader.batch_size (now 16)',
        'crop_size',
        'of frozen weights in float32 and',
        'of trained ones with gradients and Adam',
    ):
        assert word in str(caught.value)


def test_a_full_device_in_a_selection(train):
    with full_at('DiTTransformer2DModel'), pytest.raises(torch.OutOfMemoryError) as caught:
        train(timestep='auto')
    for word in (*WORDS, 'while reading a batch of shape (16, 3, 32, 32)', 'image_size'):
        assert word in str(caught.value)


def test_a_full_device_in_an_extraction(tiny_dit, photos, tmp_path, capsys):
    command = ['features', photos, '--pretrained', tiny_dit, '--timestep', '50']
    with full_at('DiTTransformer2DModel'):
        assert main([*command, '--out', str(tmp_path / 'out')]) == 1
    said = capsys.readouterr().err
    assert all(word in said for word in (*WORDS, 'image_size')), said
    assert 'Traceback' not in said


def test_deterministic_mode(train, tmp_path):
    """What cannot be deterministic warns, also in a run that resumes; and the variable is set."""

    def states(*options):
        train(*options, '--cfg-options', 'randomness.deterministic=True', 'randomness.seed=None')
        (tmp_path / 'states').write_text(
            json.dumps(
                dict(
                    on=torch.are_deterministic_algorithms_enabled(),
                    warns=torch.is_deterministic_algorithms_warn_only_enabled(),
                    variable=os.environ['CUBLAS_WORKSPACE_CONFIG'],
                    started=torch.cuda.is_initialized(),
                )
            )
        )

    # MMEngine sets PyTorch's switch once more where a seed comes from the checkpoint.
    resume = ['--resume', str(tmp_path / 'out' / 'iter_1.pth')]
    for options in ([], resume):
        log = tmp_path / 'log'
        assert exit_code(forked(lambda more=options: states(*more), log)) == 0, log.read_text()
        expected = dict(on=True, warns=True, variable=':4096:8', started=False)
        assert json.loads((tmp_path / 'states').read_text()) == expected
