# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Two nodes on this machine: each has a home, and so caches, of its own."""

import json
import os
import re
import runpy
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from forks import free_port, run_ranks

from mmaselect.diffusion.families.sd3 import SD3Family
from mmaselect.launch import waiting

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / 'tests' / 'test_diffusion' / 'test_families'))


@pytest.fixture
def config(tmp_path):
    """The demo with a model that takes a prompt."""
    from tiny_sd3 import save_sd3

    torch.manual_seed(0)
    save_sd3(tmp_path / 'sd3')
    path = tmp_path / 'nodes.py'
    path.write_text(
        f'_base_ = {str(ROOT / "configs/demo/aselect_dit-tiny_fcn_demo.py")!r}\n'
        f'model = dict(backbone=dict(pretrained={str(tmp_path / "sd3")!r}, blocks=[2],\n'
        f"    selection=dict(_delete_=True, criterion='HighFrequencyRatio', others=[],\n"
        f'    timesteps=[0, 300, 600], num_images=16, image_size=64)),\n'
        f'    decode_head=dict(in_channels=16))\n'
        f'train_dataloader = dict(batch_size=4, num_workers=0, dataset=dict(num_collages=16))\n'
        f'train_cfg = dict(max_iters=2, val_interval=9)\n'
        f'default_hooks = dict(checkpoint=dict(interval=2))\n'
    )
    return path


def flags(config, folder):
    return [str(config), '--work-dir', str(folder), '--no-validate', '--launcher', 'pytorch']


def check(homes, folder):
    """Each home has the prompt, and the run has one pick."""
    for home in homes:
        assert len([*home.rglob('conditions/*.safetensors')]) == 1, home
    result = json.loads((folder / 'selection.json').read_text())
    weights = torch.load(folder / 'iter_2.pth', weights_only=True)['state_dict']
    assert int(weights['backbone.picked_timestep']) == result['timestep']


def test_who_waits_for_whom(config, tmp_path, monkeypatch):
    """The second process embeds its prompt for longer, in a home of its own; the first says so."""
    monkeypatch.delenv('MMASELECT_CACHE', raising=False)
    monkeypatch.delenv('XDG_CACHE_HOME', raising=False)
    monkeypatch.setattr(waiting, 'LINE_SECONDS', 0.2)
    homes = [tmp_path / 'node0', tmp_path / 'node1']
    embed = SD3Family.embed

    def slow(self, pipeline, prompt, **options):
        if os.environ['RANK'] == '1':
            time.sleep(2)
        return embed(self, pipeline, prompt, **options)

    monkeypatch.setattr(SD3Family, 'embed', slow)
    tool = runpy.run_path(str(ROOT / 'tools' / 'train.py'))

    def start():
        os.environ['HOME'] = str(homes[int(os.environ['RANK'])])
        tool['main'](flags(config, tmp_path / 'out'))

    codes = run_ranks(start, tmp_path)
    log = (tmp_path / 'rank0.log').read_text()
    assert codes == [0, 0], log[-6000:]
    found = re.findall(r'waiting for process 1 \(.*\): .*: embedding the prompt on the CPU', log)
    assert found, log[-6000:]
    check(homes, tmp_path / 'out')


@pytest.mark.thorough
def test_two_agents_of_torchrun(config, tmp_path):
    homes = [tmp_path / 'node0', tmp_path / 'node1']
    port = free_port()
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in ('MMASELECT_CACHE', 'XDG_CACHE_HOME')
    }
    nodes = [
        subprocess.Popen(
            [
                *(
                    sys.executable,
                    '-m',
                    'torch.distributed.run',
                    '--nnodes=2',
                    '--nproc-per-node=1',
                ),
                *(f'--node-rank={rank}', '--master-addr=127.0.0.1', f'--master-port={port}'),
                *(ROOT / 'tools' / 'train.py', *flags(config, tmp_path / 'out')),
            ],
            cwd=ROOT,
            env={**kept, 'HOME': str(home), 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank, home in enumerate(homes)
    ]
    said = [node.communicate()[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said[0][-3000:] + said[1][-3000:]
    check(homes, tmp_path / 'out')
