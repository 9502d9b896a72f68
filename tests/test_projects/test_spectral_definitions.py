# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""``projects/spectral_definitions``: its list of definitions, and its study as a user calls it."""

import csv
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmaselect.selection.scoring import build_criteria

ROOT = Path(__file__).resolve().parents[2]
PROJECT = ROOT / 'projects' / 'spectral_definitions'


def load(path):
    """A script, imported without running it, with its own folder in reach as Python has it."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
        sys.modules.pop('variants', None)
    return module


tiny_configs = load(ROOT / 'tests' / 'test_analysis' / 'tiny_configs.py')
criteria_study = load(PROJECT / 'criteria_study.py')
describe, variants = criteria_study.describe, criteria_study.variants


def study(*arguments):
    criteria_study.main([str(argument) for argument in arguments])


def rows_of(path):
    with open(path, newline='', encoding='utf-8') as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope='module')
def classification(tiny_dit, tmp_path_factory):
    return tiny_configs.write_classification(tmp_path_factory.mktemp('cls'), tiny_dit)


@pytest.fixture(scope='module')
def probed(classification, tmp_path_factory):
    """What probe_timesteps.py writes."""
    out = tmp_path_factory.mktemp('probed')
    tool = load(ROOT / 'tools' / 'analysis_tools' / 'probe_timesteps.py')
    flags = ['--timesteps', '0,300,900', '--blocks', '1', '4', '--features', 'query', 'value']
    tool.main([str(classification), *flags, '--out', str(out)])
    return out


@pytest.mark.parametrize('full', [False, True])
def test_all_can_be_built_and_told_apart(full):
    configs = variants(10, full)
    assert len({describe(config) for config in configs}) == len(configs)
    assert len(build_criteria(configs)) == len(configs)


def test_the_short_list_is_part_of_the_full_one():
    names = {describe(config) for config in variants(10, full=True)}
    assert {describe(config) for config in variants(10)} < names


def test_names():
    assert describe(dict(type='Mine', power=2)) == 'Mine power=2'
    assert describe(dict(type='FisherScore', num_classes=3, reduction='total')) == (
        'Fisher score total'
    )


def test_criteria_are_joined_with_the_probe(classification, probed, tmp_path):
    flags = ('--probe', probed, '--out', tmp_path, '--only', 'HFR 2d 0.15|Fisher|channels')
    study(classification, *flags, '--add', 'type=HighFrequencyRatio', 'cutoff=0.3')
    rows = rows_of(tmp_path / 'criteria_study.csv')
    accuracies = {
        (row['timestep'], row['block'], row['feature']): float(row['accuracy'])
        for row in rows_of(probed / 'probe_timesteps.csv')
    }
    scores = rows_of(tmp_path / 'scores.csv')
    assert len({row['criterion'] for row in rows}) > 20
    for row in rows:
        tap = row['block'], row['feature']
        mine = [s for s in scores if (s['criterion'], s['block'], s['feature']) ==
                (row['criterion'], *tap)]  # fmt: skip
        pick = max(mine, key=lambda s: (float(s['score']), -int(s['timestep'])))['timestep']
        best = max(accuracies[(step, *tap)] for step in ('0', '300', '900'))
        assert float(row['regret']) == pytest.approx(best - accuracies[(pick, *tap)])
    table = (tmp_path / 'criteria_study.md').read_text().splitlines()
    worst = [float(line.split('|')[3]) for line in table[2:]]
    assert worst == sorted(worst)
    with Image.open(tmp_path / 'criteria_study.png') as image:
        assert np.asarray(image.convert('L')).std() > 5, 'an empty figure'


def test_studies_are_put_together(classification, probed, tmp_path):
    flags = ('--probe', probed, '--only', 'HFR channels 0.15')
    study(classification, *flags, '--out', tmp_path / 'a', '--case', 'first')
    more = ('--blocks', '4', '--also', tmp_path / 'a')
    study(classification, *flags, *more, '--out', tmp_path / 'b')
    both = rows_of(tmp_path / 'b' / 'criteria_study.csv')
    single = rows_of(tmp_path / 'a' / 'criteria_study.csv')
    assert [row for row in both if row['case'] == 'first'] == single
    (line,) = [
        line
        for line in (tmp_path / 'b' / 'criteria_study.md').read_text().splitlines()
        if 'HFR channels 0.15 per-channel power |' in line and 'cross' not in line
    ]
    worst = max(float(row['regret']) for row in both
                if row['criterion'] == 'HFR channels 0.15 per-channel power')  # fmt: skip
    assert float(line.split('|')[3]) == pytest.approx(worst, abs=0.01)
    assert line.split('|')[6].strip().endswith('/6')
    with pytest.raises(ValueError, match=r"named \['first'\] is there already"):
        study(classification, *flags, '--case', 'first', '--also', tmp_path / 'a')
    with pytest.raises(FileNotFoundError, match='no finished study is there'):
        study(classification, *flags, '--also', tmp_path)


def test_criteria_study_of_another_model_is_refused(classification, probed, tmp_path):
    flags = ('--probe', probed, '--out', tmp_path, '--image-size', '64')
    with pytest.raises(ValueError, match='image_size=32, but this command has 64'):
        study(classification, *flags)
    with pytest.raises(ValueError, match="'nothing' matches none of the 82 definitions"):
        study(classification, '--probe', probed, '--only', 'nothing')
    with pytest.raises(ValueError, match=r"--add takes type=NAME and KEY=VALUE, got \['cutoff"):
        study(classification, '--probe', probed, '--add', 'cutoff=0.1')
    with pytest.raises(FileNotFoundError, match='not a folder of results'):
        study(classification, '--probe', tmp_path / 'none')


def test_help_teaches_with_examples(capsys):
    with pytest.raises(SystemExit) as stop:
        criteria_study.parse_args(['--help'])
    assert stop.value.code == 0
    assert capsys.readouterr().out.count('projects/spectral_definitions/criteria_study.py') >= 3
