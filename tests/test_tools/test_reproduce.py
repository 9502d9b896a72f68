# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""``tools/reproduce.py``: its rows, and all of it on a miniature of Stable Diffusion 3's class."""

import importlib.util
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from mmaselect.fetch import DATA_SETS
from mmaselect.leaderboard.paper import DATA, FIGURE_ROW, FIGURES, MODELS, ROWS, SIX
from mmaselect.leaderboard.reproduction import NOT_RUN, choose_rows, reproduction_table

ROOT = Path(__file__).resolve().parents[2]


def reproduce(*arguments):
    spec = importlib.util.spec_from_file_location('reproduce', ROOT / 'tools' / 'reproduce.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main([str(argument) for argument in arguments])


def test_the_rows_are_complete():
    names = [row.name for row in ROWS]
    assert len(set(names)) == len(names) == len(DATA) * len(MODELS) * 2 == 32
    for row in ROWS:
        assert (ROOT / row.config).is_file()
        assert row.data.name in DATA_SETS, 'mmaselect data gets it under the same name'
        assert row.petaflops > 0
    assert {row.paper for row in ROWS if row.form == 'ours' or row.model is MODELS[1]} == {None}
    for figure in FIGURES:
        assert (ROOT / 'tools' / 'analysis_tools' / f'{figure.tool}.py').is_file()


def test_counted_cost():
    """CUB: 100 epochs of 5,394 and 600 images; a head costs three passes in training."""
    (row,) = choose_rows('cub/sd35-medium/paper')
    images = 100 * (5394 + 600) + 5794
    giga = images * (1118 + 1035 + 24) + 2 * 100 * 5394 * 24
    assert row.petaflops == pytest.approx(giga / 1e6)
    assert row.hours == pytest.approx(giga * 1e9 / 1e14 / 3600)


def test_rows_by_words():
    assert len(choose_rows(None)) == 32 + len(FIGURES)
    assert len(choose_rows('flowers, cub')) == 8
    for words in ('cub/sd3-medium/*', 'cub/sd3-medium', 'cub/sd3-medium/'):
        assert [row.name for row in choose_rows(words)] == [
            'cub/sd3-medium/paper',
            'cub/sd3-medium/ours',
        ]
    assert {row.name for row in choose_rows('fig*')} == {figure.name for figure in FIGURES}
    with pytest.raises(ValueError, match=r"--only 'birds' fits no row: there are cub, sd35-medium"):
        choose_rows('cub,birds')


def test_the_table_is_filled_where_something_ran():
    (row,) = choose_rows('cars/sd35-medium/paper')
    found = {Path(row.config).stem: dict(mean='85.2', deviation='0.31', runs='3', pick='50')}
    table = reproduction_table(found, dict(fig3='drawn'))
    lines = {line.split('|')[1].strip(): line for line in table.splitlines() if '|' in line}
    assert '| 86.1 | 85.2 ± 0.31 (3 seeds) | 50 |' in lines['`cars/sd35-medium/paper`']
    assert NOT_RUN in lines['`cub/sd35-medium/paper`']
    assert '| drawn |' in lines['`fig3`'] and NOT_RUN in lines['`fig1`']
    average = lines['average of the six, `sd35-medium/paper`']
    assert '| 82.5 |' in average and NOT_RUN in average
    six = [r for r in ROWS if r.data.name in SIX and (r.model, r.form) == (MODELS[0], 'paper')]
    found = {Path(r.config).stem: dict(mean=80 + i, runs=1) for i, r in enumerate(six)}
    (line,) = (x for x in reproduction_table(found).splitlines() if 'of the six, `sd35' in x)
    assert '| 82.50 |' in line


def test_list_and_commands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    reproduce('--list', '--only', 'flowers,fig1', '--seeds', '2')
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5 and lines[0].split()[:2] == ['flowers/sd35-medium/paper', '0/2']
    reproduce(
        '--dry-run', '--only', 'imagenet/sd3-medium/ours', '--gpus', '2', '--cfg-options', 'a=1'
    )
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith('bash ') and 'dist_train.sh' in line and ' 2 --work-dir ' in line
    assert line.endswith('--auto-scale-lr --cfg-options randomness.seed=0 resume=True a=1')
    reproduce('--dry-run', '--only', 'fig5')
    assert FIGURE_ROW.config in capsys.readouterr().out
    assert not list(tmp_path.iterdir()), 'nothing ran'
    with pytest.raises(ValueError, match='--seeds must be at least 1, got 0'):
        reproduce('--list', '--seeds', '0')


def write_flowers(root):
    """Four kinds of colored squares in the layout of Oxford Flowers; labels 1 to 4."""
    rng = np.random.default_rng(0)
    (root / 'jpg').mkdir(parents=True)
    labels = np.arange(60) % 4 + 1
    for number, label in enumerate(labels, 1):
        pixels = rng.integers(0, 80, (40, 44, 3)) + 40 * np.array([label, 4 - label, 2])
        path = root / 'jpg' / f'image_{number:05d}.jpg'
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
    savemat(root / 'imagelabels.mat', dict(labels=labels[None]))
    parts = dict(trnid=range(1, 33), valid=range(33, 41), tstid=range(41, 61))
    savemat(root / 'setid.mat', {name: [list(part)] for name, part in parts.items()})


MINIATURE = [
    *('model.backbone.dtype=fp32', 'model.backbone.blocks=[1]'),
    *('model.backbone.selection.image_size=32', 'model.backbone.selection.num_images=16'),
    'model.backbone.selection.timesteps="0,250,500,750"',
    *('model.head.in_channels=16', 'model.head.embed_dims=16', 'model.head.num_heads=2'),
    *('train_cfg.max_epochs=1', 'optim_wrapper.optimizer.lr=0.01'),
    *(
        f'{part}_dataloader.{key}'
        for part in ('train', 'val', 'test')
        for key in (
            *('num_workers=0', 'persistent_workers=False', 'batch_size=8'),
            *('dataset.pipeline.1.scale=36', 'dataset.pipeline.2.crop_size=32'),
        )
    ),
]


@pytest.mark.thorough
def test_from_start_to_table(tmp_path, monkeypatch, capfd):
    """Two seeds of one row, a figure that fails, the table; then nothing is run twice."""
    sys.path.insert(0, str(ROOT / 'tests' / 'test_diffusion' / 'test_families'))
    try:
        from tiny_sd3 import save_sd3
    finally:
        sys.path.pop(0)
    save_sd3(tmp_path / 'sd3')
    write_flowers(tmp_path / 'data' / 'Flowers102')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('PYTHONPATH', str(ROOT))
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '-1')
    options = ['--cfg-options', f'model.backbone.pretrained={tmp_path / "sd3"}', *MINIATURE]
    only = ('--only', 'flowers/sd3-medium/paper', '--out', 'out', '--seeds')
    reproduce(*only, '2', *options)

    table = (tmp_path / 'out' / 'reproduce.md').read_text()
    (line,) = (x for x in table.splitlines() if '`flowers/sd3-medium/paper`' in x)
    cells = [cell.strip() for cell in line.split('|')]
    assert re.fullmatch(r'[\d.]+( ± [\d.]+)? \(2 seeds\)', cells[3]), line
    seeds = [tmp_path / 'out' / 'flowers_sd3-medium_paper' / f'seed{n}' for n in (0, 1)]
    for folder in seeds:
        selection = json.loads((folder / 'selection.json').read_text())
        assert selection['criterion'] == 'PaperHFR'
        assert cells[4].startswith(str(selection['timestep']))
        assert (folder / 'ended.json').is_file()
    assert table.count(NOT_RUN) == 31 + 2 + len(FIGURES)
    board = (tmp_path / 'out' / 'leaderboard' / 'leaderboard.md').read_text()
    assert 'PaperHFR' in board and 'AttentionPoolClsHead' in board
    assert '| 1 | query |' in board

    # The same again: what has ended is not trained, and is not tested a second time.
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / 'out').rglob('*.pth')}
    results = list((tmp_path / 'out' / 'leaderboard' / 'results').iterdir())
    capfd.readouterr()
    reproduce(*only, '2', *options)
    assert 'train.py' not in capfd.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / 'out').rglob('*.pth')}
    assert results == list((tmp_path / 'out' / 'leaderboard' / 'results').iterdir())
    assert (tmp_path / 'out' / 'reproduce.md').read_text() == table
    # Our form searches the place, and the table names what was picked.
    free = [option for option in options if 'backbone.blocks' not in option]
    reproduce('--only', 'flowers/sd3-medium/ours', '--out', 'ours', *free)
    (path,) = (tmp_path / 'ours').glob('flowers_*/seed0/selection.json')
    selection = json.loads(path.read_text())
    ((block, feature),) = selection['cells']
    assert selection['criterion'] == 'InstanceSensitivity' and len(selection['per_tap']) == 5 * 5
    board = (tmp_path / 'ours' / 'leaderboard' / 'leaderboard.md').read_text()
    assert f'| {block} | {feature} |' in board

    # A row that fails is named at the end, and the others stay in the table.
    with pytest.raises(SystemExit, match=r'these rows failed:\ncub/sd3-medium/paper: .*train\.py'):
        reproduce('--only', 'cub/sd3-medium/paper', '--out', 'out', *options)
    assert (tmp_path / 'out' / 'reproduce.md').read_text() == table
