# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""``tools/leaderboard.py`` as a user calls it."""

import csv
import importlib.util
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def load(path):
    """A script, imported without running it."""
    spec = importlib.util.spec_from_file_location(f'loaded_{path.stem}', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def leaderboard(*arguments):
    load(ROOT / 'tools' / 'leaderboard.py').main([str(argument) for argument in arguments])


def rows_of(path):
    with open(path, newline='', encoding='utf-8') as file:
        return list(csv.DictReader(file))


@pytest.fixture
def trained(tiny_dit, tmp_path):
    """The work directory of a training on one seed, and a copy that claims to be of another."""
    tiny_configs = load(ROOT / 'tests' / 'test_analysis' / 'tiny_configs.py')
    config = tiny_configs.write_classification(tmp_path, tiny_dit)
    first, second = tmp_path / 's0', tmp_path / 's1'
    options = ['--cfg-options', 'randomness.seed=0']
    load(ROOT / 'tools' / 'train.py').main([str(config), '--work-dir', str(first), *options])
    shutil.copytree(first, second)
    path = second / 'tiny_cls.py'
    text = path.read_text()
    assert 'seed=0' in text
    path.write_text(text.replace('seed=0', 'seed=1'))
    return first, second


@pytest.mark.parametrize('broken', [False, pytest.param(True, marks=pytest.mark.thorough)])
def test_tests_once_and_groups_seeds(trained, tmp_path, monkeypatch, broken):
    monkeypatch.setenv('PYTHONPATH', str(ROOT))
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '-1')
    first, second = trained
    out = tmp_path / 'board'
    if broken:
        (tmp_path / 'broken.pth').write_bytes(b'no checkpoint')
        pair = (first / 'tiny_cls.py', tmp_path / 'broken.pth')
        with pytest.raises(SystemExit, match='these runs have no result') as failed:
            leaderboard(*trained, '--pair', *pair, '--out', out)
        assert 'broken.pth' in str(failed.value)
    else:
        leaderboard(*trained, '--out', out)

    row, *failed = rows_of(out / 'leaderboard.csv')
    assert [one['data set'] for one in failed] == (['broken.pth'] if broken else [])
    (log,) = first.glob('*/vis_data/scalars.json')
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    (logged,) = (line['accuracy/top1'] for line in lines if 'accuracy/top1' in line)
    assert float(row['mean']) == pytest.approx(logged, abs=0.01)
    assert (row['runs'], float(row['deviation'])) == ('2', 0)
    assert row['data set'] == 'CustomDataset (stripes)'
    assert (row['head'], row['block']) == ('LinearClsHead', '1')
    selection = json.loads((first / 'selection.json').read_text())
    low, high = selection['interval']
    assert (
        row['pick'].startswith(f'{selection["timestep"]} (') and f'{low} to {high})' in row['pick']
    )
    assert (row['criterion'], row['seeds']) == ('InstanceSensitivity', '0, 1')
    assert row['schedule'] == '1 epochs, batch 4, SGD 0.05' and row['image size'] == '32x32'
    assert float(row['GFLOPs per image']) > 0 and float(row['s per image']) > 0
    assert row['page'].count('selection.html') == 2 and row['config'] == 'tiny_cls'
    assert float(row['selection (evaluations)']) == 3 * 8 * 3, 'two views and a draw'
    assert float(row['trained (M)']) == pytest.approx(51 / 1e6, abs=1e-3), 'a layer 16 -> 3'
    assert float(row['total (M)']) > 0.01
    assert int(row['testing (MB)']) > 50
    if broken:
        return
    assert (out / 'leaderboard.md').read_text().count('\n') == 3

    monkeypatch.setattr(
        subprocess, 'run', lambda *args, **kwargs: pytest.fail('tested a second time')
    )
    leaderboard(second, '--out', out, '--html')
    assert 'CustomDataset (stripes)' in (out / 'leaderboard.html').read_text()
    (row,) = rows_of(out / 'leaderboard.csv')
    assert (row['runs'], row['deviation']) == ('1', '')


def test_tells_failures(tiny_dit, tmp_path, monkeypatch):
    """Of each test, and after all of them; a program that fails stands for Python."""
    tiny_configs = load(ROOT / 'tests' / 'test_analysis' / 'tiny_configs.py')
    config = tiny_configs.write_classification(tmp_path, tiny_dit)
    pairs = []
    for name in ('a.pth', 'b.pth'):
        (tmp_path / name).write_text(name)
        pairs += ['--pair', config, tmp_path / name]
    python = tmp_path / 'python'
    python.write_text(f'#!/bin/bash\necho "$4" >> {tmp_path}/called; echo out of order; exit 1\n')
    python.chmod(0o755)
    monkeypatch.setattr('sys.executable', str(python))
    with pytest.raises(SystemExit, match='these runs have no result') as failed:
        leaderboard(*pairs, '--out', tmp_path / 'board')
    assert all(text in str(failed.value) for text in ('a.pth', 'b.pth', 'out of order'))
    called = (tmp_path / 'called').read_text().split()
    assert called == [str(tmp_path / 'a.pth'), str(tmp_path / 'b.pth')]


def test_a_damaged_work_dir_is_a_row(tmp_path, monkeypatch):
    """Of whatever kind the damage is; the others of the table are there."""
    good = dict(metrics={'mIoU': 50.0}, metric='mIoU', block='1', timestep=3, trained=1, total=2)
    good |= dict(test_memory=1, seconds_per_image=0.1)
    config = (
        "default_scope = 'mmseg'\n"
        "model = dict(backbone=dict(type='X'), decode_head=dict(type='H'))\n"
        "test_dataloader = dict(dataset=dict(type='mmseg.D'))\n"
    )
    damages = {
        'good': lambda d: None,
        'config': lambda d: (d / 'config.py').write_text('x = ('),
        'note': lambda d: (d / 'last_checkpoint').write_bytes(b'\xff\xfe'),
        'selection': lambda d: (d / 'selection.json').write_text('{'),
        'log': lambda d: (
            (d / '1' / 'vis_data').mkdir(parents=True),
            (d / '1' / 'vis_data' / 'scalars.json').write_text('{"memory": "much"'),
        ),
        'gone': lambda d: (d / 'iter_1.pth').unlink(),
    }
    for name, damage in damages.items():
        folder = tmp_path / name
        folder.mkdir()
        (folder / 'config.py').write_text(f'{config}name = {name!r}\n')
        (folder / 'iter_1.pth').write_text(name)
        (folder / 'last_checkpoint').write_text('iter_1.pth')
        damage(folder)
    tool = load(ROOT / 'tools' / 'leaderboard.py')
    tested = []

    def test(run, args, path):
        tested.append(run.work_dir.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(good))

    monkeypatch.setattr(tool, 'test_in_process', test)
    folders = [str(tmp_path / name) for name in damages]
    with pytest.raises(SystemExit, match='these runs have no result') as failed:
        tool.main([*folders, '--out', str(tmp_path / 'board'), '--html'])
    first, *others = rows_of(tmp_path / 'board' / 'leaderboard.csv')
    assert first['mean'] == '50.0' and first['problem'] == ''
    assert {row['data set'] for row in others} == {*damages} - {'good'}
    for row in others:
        assert row['problem'], row
        assert str(tmp_path / row['data set']) in str(failed.value)
    assert 'selection' in (tmp_path / 'board' / 'leaderboard.html').read_text()
    for result in (tmp_path / 'board' / 'results').iterdir():
        result.write_text('{')
    tool.main([folders[0], '--out', str(tmp_path / 'board')])
    assert tested.count('good') == 2, 'a damaged result is no result'
    with pytest.raises(FileNotFoundError, match='nowhere'):
        tool.main(['nowhere', '--out', str(tmp_path / 'board')])


def test_help_teaches_with_examples(capsys):
    with pytest.raises(SystemExit) as stop:
        leaderboard('--help')
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert text.count('tools/leaderboard.py') >= 3 and 'tools/run_seeds.sh' in text
    assert '--worker' not in text


def test_nothing_to_do(capsys):
    with pytest.raises(SystemExit):
        leaderboard('--out', 'x')
    assert 'name work directories, or --pair' in capsys.readouterr().err


def test_options_are_handed_on_as_typed():
    raw = load(ROOT / 'tools' / 'leaderboard.py').raw_options
    assert raw(['a', '--cfg-options', 'x.y="[1, 2]"', 'b=c', '--out', 'd']) == [
        'x.y="[1, 2]"',
        'b=c',
    ]
    assert raw(['a']) == []


def test_seeds_in_one_command(tmp_path):
    """What the script starts; an interpreter that writes down its arguments stands for Python."""
    calls, out = tmp_path / 'calls', tmp_path / 'seeds'
    python = tmp_path / 'python'
    python.write_text(
        f'#!/bin/bash\nprintf "%s\\n" "$*" >> {calls}\n'
        'while [ $# -gt 0 ]; do [ "$1" = --work-dir ] && mkdir -p "$2"; shift; done\n'
    )
    python.chmod(0o755)
    environment = dict(os.environ, OUT=str(out), PYTHON=str(python))

    def run(*arguments):
        command = ['bash', str(ROOT / 'tools' / 'run_seeds.sh'), *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    done = run('a/mine.py', '2', '--amp', '--cfg-options', 'a=1', 'b.c=2', '--no-validate')
    assert done.returncode == 0, done.stderr
    tools = ROOT / 'tools'
    flags = '--amp --no-validate --cfg-options randomness.seed={} resume=True a=1 b.c=2'
    train = [
        f'{tools}/train.py a/mine.py --work-dir {out}/seed{seed} {flags.format(seed)}'
        for seed in (0, 1)
    ]
    table = f'{tools}/leaderboard.py {out}/seed0 {out}/seed1 --out {out}/leaderboard --html'
    assert calls.read_text().splitlines() == [*train, table]
    # A seed that has ended is not trained again.
    (out / 'seed1' / 'ended').unlink()
    calls.unlink()
    assert run('a/mine.py', '2').returncode == 0
    assert [line.split()[0] for line in calls.read_text().splitlines()] == [
        f'{tools}/train.py', f'{tools}/leaderboard.py'
    ]  # fmt: skip
    for wrong in ([], ['a/mine.py', '0'], ['a/mine.py', 'two']):
        assert run(*wrong).returncode == 2
    assert 'set OUT in place of --work-dir' in run('a/mine.py', '1', '--work-dir', 'x').stderr
