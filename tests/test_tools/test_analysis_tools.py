# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""``tools/analysis_tools`` as a user calls them."""

import csv
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / 'tools' / 'analysis_tools'
ANALYSIS = ('block_feature_grid', 'fisher_score', 'frequency_maps', 'probe_timesteps')


def load(path):
    """A script, imported without running it."""
    spec = importlib.util.spec_from_file_location(f'loaded_{path.stem}', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tiny_configs = load(ROOT / 'tests' / 'test_analysis' / 'tiny_configs.py')


def tool(name, *arguments):
    """Run a tool in this process."""
    load(TOOLS / f'{name}.py').main([str(argument) for argument in arguments])


def rows_of(path):
    with open(path, newline='', encoding='utf-8') as file:
        return list(csv.DictReader(file))


def check_figure(folder, stem):
    with Image.open(folder / f'{stem}.png') as image:
        assert np.asarray(image.convert('L')).std() > 5, 'an empty figure'
    assert (folder / f'{stem}.pdf').read_bytes().startswith(b'%PDF')
    assert '<svg' in (folder / f'{stem}.svg').read_text(encoding='utf-8')


@pytest.fixture(scope='module')
def classification(tiny_dit, tmp_path_factory):
    return tiny_configs.write_classification(tmp_path_factory.mktemp('cls'), tiny_dit)


@pytest.fixture(scope='module')
def segmentation(tiny_dit, tmp_path_factory):
    return tiny_configs.write_segmentation(tmp_path_factory.mktemp('seg'), tiny_dit)


PROBE = ('--timesteps', '0,300,900', '--blocks', '1', '4', '--features', 'query', 'value')


@pytest.fixture(scope='module')
def probed(classification, tmp_path_factory):
    """What probe_timesteps.py writes."""
    out = tmp_path_factory.mktemp('probed')
    tool('probe_timesteps', classification, *PROBE, '--out', out)
    return out


def test_probe_writes_what_it_says(probed):
    rows = rows_of(probed / 'probe_timesteps.csv')
    assert len(rows) == 3 * 2 * 2
    assert {'timestep', 'noise_level', 'accuracy', 'low', 'high', 'InstanceSensitivity',
            'PaperHFR', 'FisherScore'} <= set(rows[0])  # fmt: skip
    summary = json.loads((probed / 'summary.json').read_text())
    for entry in summary['taps']:
        mine = [
            row for row in rows
            if (int(row['block']), row['feature']) == (entry['block'], entry['feature'])
        ]  # fmt: skip
        best = max(float(row['accuracy']) for row in mine)
        assert entry['best'] == pytest.approx(best)
        for name, found in entry['criteria'].items():
            pick = max(mine, key=lambda row: float(row[name]))
            assert int(pick['timestep']) == found['pick']
            assert found['regret'] == pytest.approx(best - float(pick['accuracy']))
    cost = summary['cost']
    assert cost['search_evaluations'] == 3 * (36 + 24)
    assert cost['selection_evaluations'] == 3 * 8 * 3, 'eight images, two views and a draw'
    assert cost['ratio_evaluations'] == pytest.approx(180 / 72)
    assert cost['search_seconds'] > 0 and cost['selection_seconds'] > 0
    check_figure(probed, 'probe_timesteps')


def test_probe_resumes_and_refuses(classification, probed, capsys, monkeypatch):
    stored = {path.name: path.read_bytes() for path in (probed / 'timesteps').iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(
            'mmaselect.analysis.study.Study.encode',
            lambda *args, **kwargs: pytest.fail('nothing was missing, yet images were encoded'),
        )
        tool('probe_timesteps', classification, *PROBE, '--out', probed)
    assert 'times the evaluations' in capsys.readouterr().out
    wider = ('--timesteps', '0,300,600,900', *PROBE[2:])
    tool('probe_timesteps', classification, *wider, '--out', probed)
    after = {path.name: path.read_bytes() for path in (probed / 'timesteps').iterdir()}
    assert set(after) - set(stored) == {'t0600.json'}
    assert all(after[name] == content for name, content in stored.items())
    (probed / 'timesteps' / 't0600.json').unlink()
    with pytest.raises(ValueError, match=r'other settings .*num_train: 36 there, 20 now'):
        tool('probe_timesteps', classification, *PROBE, '--out', probed, '--num-train', '20')


def test_fisher_score_and_joint_choice(classification, probed, tmp_path):
    flags = (*PROBE, '--num-images', '30', '--out', tmp_path, '--joint', '--probe', probed)
    tool('fisher_score', classification, *flags)
    scores = [row for row in rows_of(tmp_path / 'scores.csv') if row['criterion'] == 'FisherScore']
    best = max(scores, key=lambda row: float(row['score']))
    ranking = rows_of(tmp_path / 'joint.csv')
    assert len(ranking) == 4
    assert [ranking[0][key] for key in ('block', 'feature', 'timestep')] == [
        best[key] for key in ('block', 'feature', 'timestep')
    ]
    for row in ranking:
        assert float(row['accuracy there']) <= float(row['best accuracy'])
    comparisons = json.loads((tmp_path / 'summary.json').read_text())['comparisons']
    names = {row['criterion'] for row in comparisons}
    assert names == {'InstanceSensitivity', 'PaperHFR'}
    assert all(row['fisher_share'] <= 1 for row in comparisons)
    check_figure(tmp_path, 'fisher_score')
    with pytest.raises(ValueError, match=r'lacks timesteps \[500\]'):
        tool('fisher_score', classification, '--timesteps', '0,500', *flags[2:])


def test_block_feature_grid_measures_each_at_its_pick(classification, tmp_path):
    flags = ('--blocks', '0', '3', '--features', 'query', 'output', '--timesteps', '0,700')
    tool('block_feature_grid', classification, *flags, '--out', tmp_path)
    rows = rows_of(tmp_path / 'block_feature_grid.csv')
    assert {(row['block'], row['feature']) for row in rows} == {
        ('0', 'query'), ('0', 'output'), ('3', 'query'), ('3', 'output')
    }  # fmt: skip
    stored = sorted((tmp_path / 'selection' / 'timesteps').iterdir())
    assert [path.name for path in stored] == ['t0000.json', 't0700.json']
    # The label-free map: each cell's highest score, and its timestep, at which it was probed.
    for row in rows:
        scores = {}
        for path in stored:
            step = json.loads(path.read_text())
            (scores[step['timestep']],) = (
                one['score']
                for one in step['criteria']
                if (str(one['block']), one['feature']) == (row['block'], row['feature'])
            )
        assert float(row['score']) == max(scores.values())
        assert scores[int(row['picked'])] == max(scores.values())
        assert row['picked'] == row['timestep']
    table = (tmp_path / 'block_feature_grid.md').read_text()
    assert table.startswith('| block | query | output |')
    check_figure(tmp_path, 'block_feature_grid')


def test_probe_timesteps_trains_the_head_of_the_config(classification, tmp_path):
    flags = ('--timesteps', '0,900', '--blocks', '1', '--others', 'PaperHFR')
    flags += ('--head-epochs', '400')
    tool('probe_timesteps', classification, *flags, '--out', tmp_path)
    rows = rows_of(tmp_path / 'probe_timesteps.csv')
    clean, noise = (float(row['trained head']) for row in rows)
    # Stripes tell the classes apart, and noise covers them.
    assert clean > noise and clean > 60
    assert {'PaperHFR', 'FisherScore'} < rows[0].keys()
    # With a head and without one are different results.
    with pytest.raises(ValueError, match='results of other settings'):
        tool('probe_timesteps', classification, *flags[:-2], '--out', tmp_path)


@pytest.mark.parametrize('at, choose', [('best', max), ('300', None)])
def test_block_feature_grid_from_a_probe(classification, probed, tmp_path, at, choose):
    tool('block_feature_grid', classification, '--probe', probed, '--at', at, '--out', tmp_path)
    accuracies = rows_of(probed / 'probe_timesteps.csv')
    for row in rows_of(tmp_path / 'block_feature_grid.csv'):
        mine = {
            int(r['timestep']): float(r['accuracy'])
            for r in accuracies
            if (r['block'], r['feature']) == (row['block'], row['feature'])
        }
        expected = choose(mine.values()) if choose else mine[int(at)]
        assert float(row['value']) == expected
    assert not (tmp_path / 'probes').exists()


def test_frequency_maps(classification, tmp_path):
    photo = tmp_path / 'photo.png'
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8)).save(photo)
    flags = ('--timesteps', '0,900', '--image-size', '24', '32')
    tool('frequency_maps', classification, *flags, '--files', photo, '--out', tmp_path / 'a')
    check_figure(tmp_path / 'a', '0_query_1')
    shares = [float(row['high_share']) for row in rows_of(tmp_path / 'a' / 'frequency_maps.csv')]
    assert len(shares) == 2 and all(0 < share < 1 for share in shares)
    flags = ('--timesteps', '500', '--num-images', '2', '--view', 'mean')
    tool('frequency_maps', classification, *flags, '--out', tmp_path / 'b')
    check_figure(tmp_path / 'b', '1_query_1')


def test_segmentation_from_end_to_end(segmentation, tmp_path):
    flags = ('--timesteps', '0,900', '--pixels-per-image', '20', '--out', tmp_path)
    tool('probe_timesteps', segmentation, *flags)
    rows = rows_of(tmp_path / 'probe_timesteps.csv')
    assert float(rows[0]['mIoU']) > float(rows[1]['mIoU']), 'clean against noise'


@pytest.mark.parametrize('name', ANALYSIS)
def test_help_teaches_with_examples(name, capsys):
    with pytest.raises(SystemExit) as stop:
        load(TOOLS / f'{name}.py').parse_args(['--help'])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert 'examples:' in text and text.count(f'tools/analysis_tools/{name}.py') >= 3
    assert 'writes, into --out' in text


@pytest.mark.parametrize(
    'name, flags, message',
    [
        ('fisher_score', ['c.py', '--probe', 'p'], '--probe goes with --joint'),
        ('block_feature_grid', ['c.py', '--at', 'best'], '--at best needs --probe'),
        ('block_feature_grid', ['c.py', '--at', 'x'], "takes pick, best or a timestep, got 'x'"),
    ],
)
def test_flags_that_do_not_go_together(name, flags, message, capsys):
    with pytest.raises(SystemExit):
        load(TOOLS / f'{name}.py').parse_args(flags)
    assert message in capsys.readouterr().err
