# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""``tools/select_timestep.py --launcher pytorch`` on a machine without an accelerator."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_dit import save_tiny_dit

from mmaselect.launch.distributed import join_processes

ROOT = Path(__file__).resolve().parents[2]


def test_other_launchers_need_an_accelerator():
    with pytest.raises(
        ValueError, match=r"launcher 'slurm' needs one; on CPU use launcher 'pytorch'"
    ):
        join_processes('slurm', 'cpu')


@pytest.mark.thorough
def test_two_processes_select_as_one(tmp_path):
    model = save_tiny_dit(tmp_path / 'dit', latent=False)
    photos = tmp_path / 'photos'
    photos.mkdir()
    rng = np.random.default_rng(0)
    for number in range(6):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(photos / f'{number}.png')
    config = tmp_path / 'config.py'
    config.write_text(
        "default_scope = 'mmseg'\n"
        f"model = dict(backbone=dict(type='mmaselect.ASelecTDiT', pretrained={str(model)!r},\n"
        f'    blocks=[2], calibration={str(photos)!r}, selection=dict(timesteps=[0, 400, 800])))\n'
    )
    tool = [str(ROOT / 'tools' / 'select_timestep.py'), str(config)]
    run = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2']
    curves = []
    for name, command in (
        ('one', [sys.executable, *tool]),
        ('two', [*run, *tool, '--launcher', 'pytorch']),
    ):
        out = tmp_path / name
        subprocess.run(
            [*command, '--out', str(out)],
            check=True,
            capture_output=True,
            env={
                **os.environ,
                'PYTHONPATH': str(ROOT),
                'CUDA_VISIBLE_DEVICES': '',
                'MMASELECT_CACHE': str(tmp_path / f'cache_{name}'),
            },
        )
        curves.append(
            [p['score'] for p in json.loads((out / 'selection.json').read_text())['curve']]
        )
    assert curves[0] == pytest.approx(curves[1], rel=1e-3), 'batches of other sizes round apart'
