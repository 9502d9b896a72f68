# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
import json

import pytest
from mmengine.config import Config
from scipy.stats import ttest_ind, ttest_rel

from mmaselect.leaderboard.runs import (
    Run,
    check_run,
    dataset_name,
    find_run,
    result_key,
    selection_facts,
    setting_of,
    training_memory,
)
from mmaselect.leaderboard.significance import difference
from mmaselect.leaderboard.table import PAPER_SIX, group_runs, hide_constants
from mmaselect.selection import Curve, CurvePoint, SelectionResult


def result(setting='s', value=80.0, **changes):
    return {
        'setting': setting,
        'dataset': 'CIFAR10',
        'model': 'facebook/DiT-XL-2-256',
        'head': 'LinearClsHead',
        'block': '14',
        'feature': 'query',
        'timestep': 75,
        'metric': 'accuracy/top1',
        'value': value,
        'trained': 1_234_567,
        'total': 600_000_000,
        'selection_seconds': 10.0,
        'selection_evaluations': 1280,
        'train_memory': None,
        'test_memory': 900,
        **changes,
    }


def test_seeds_make_one_row():
    rows = group_runs(
        [
            result(value=80.0),
            result('other', 70.0, timestep=None, selection_seconds=None),
            result(value=83.0, timestep=100, selection_seconds=20.0, train_memory=5000),
        ]
    )
    first, second = rows
    assert (first['mean'], first['deviation'], first['runs']) == (81.5, 2.12, 2)
    assert first['pick'] == '75, 100'
    assert first['selection (s)'] == 15
    assert first['trained (M)'] == 1.235
    assert first['training GPU (MB)'] == 5000
    assert first['paper'] is None
    assert (second['deviation'], second['pick'], second['selection (s)']) == (None, None, None)


def test_seeds_may_pick_other_places():
    (row,) = group_runs([result(), result(block='3, 5', feature='key')])
    assert (row['block'], row['feature']) == ('14 or 3, 5', 'key or query')


def test_the_papers_numbers():
    """Stand next to the paper's models and head alone, with their source."""
    papers = dict(
        dataset='Flowers102',
        model='stabilityai/stable-diffusion-3.5-medium',
        head='AttentionPoolClsHead',
    )
    (row,) = group_runs([result(**papers)])
    assert row['paper'] == 90.6 and 'arXiv 2603.25758' in row['source']
    for other in (
        dict(metric='mIoU'),
        dict(head='LinearClsHead'),
        dict(model='facebook/DiT-XL-2-512'),
        dict(dataset='CUB'),
    ):
        (row,) = group_runs([result(**{**papers, **other})])
        assert (row['paper'], row['source'] if 'metric' not in other else None) == (None, None)
    six = [result(name, 70 + i, **{**papers, 'dataset': name}) for i, name in enumerate(PAPER_SIX)]
    assert len(group_runs(six[1:])) == 5, 'an average over five is not one over six'
    average = group_runs([*six, result('worse', 1.0, **{**papers, 'dataset': 'CUB'})])[-1]
    assert (average['mean'], average['paper']) == (72.5, 82.5)
    ours = [
        dict(one, criterion='InstanceSensitivity', setting=f'o{i}') for i, one in enumerate(six)
    ]
    assert len(group_runs([*six, *ours])) == 14, 'one average for each criterion'


def test_settings_that_differ_in_the_schedule_are_two_rows_that_say_so():
    rows = group_runs(
        [result(schedule='100 epochs'), result('other', 70.0, schedule='28 epochs', pick='50')]
    )
    assert [row['schedule'] for row in rows] == ['100 epochs', '28 epochs']
    shown, same = hide_constants(rows)
    assert {'schedule', 'pick', 'mean', 'data set', 'model'} <= shown[0].keys()
    assert same['head'] == 'LinearClsHead' and 'criterion' not in {*same, *shown[0]}


def test_differences_over_seeds():
    """Against SciPy's own tests: paired where seeds are common, Welch's where they are not."""
    first, second = [80.0, 82.5, 84.0, 81.0], [80.6, 83.0, 85.1, 81.2]
    found = difference(dict(enumerate(first)), dict(enumerate(second)))
    known = ttest_rel(first, second).confidence_interval()
    assert found.paired and (found.low, found.high) == pytest.approx((known.low, known.high))
    assert found.high < 0 and str(found).endswith(' *')
    other = difference(dict(enumerate(first)), {seed + 9: v for seed, v in enumerate(second)})
    known = ttest_ind(first, second, equal_var=False).confidence_interval()
    assert not other.paired and (other.low, other.high) == pytest.approx((known.low, known.high))
    assert other.low < 0 < other.high and not str(other).endswith('*')
    assert difference({0: 1.0}, {0: 2.0, 1: 3.0}) is None

    runs = [result(value=v, seed=seed) for seed, v in enumerate(second)]
    runs += [result('other', v, seed=seed) for seed, v in enumerate(first)]
    best, worse = group_runs(runs)
    assert best['to the best'] is None and worse['to the best'] == str(found)
    assert best['seeds'] == '0, 1, 2, 3'


def test_settings_differ_by_what_matters():
    base = dict(
        model=dict(type='ImageClassifier'),
        test_dataloader=dict(dataset=dict(type='mmaselect.HoldOut', dataset=dict(type='CUB'))),
    )

    def setting(**changes):
        return setting_of(Config({**base, **changes}))

    assert setting(randomness=dict(seed=1), work_dir='a') == setting(randomness=dict(seed=2))
    assert setting(optim_wrapper=dict(lr=1)) != setting(optim_wrapper=dict(lr=2))
    assert dataset_name(Config(base)) == 'CUB'
    assert dataset_name(Config(dict(test_dataloader=dict(dataset=dict(type='mmaselect.A'))))) == 'A'
    folder = dict(type='mmpretrain.CustomDataset', data_root='data/pets/')
    name = dataset_name(Config(dict(test_dataloader=dict(dataset=folder))))
    assert name == 'CustomDataset (pets)'


@pytest.fixture
def work_dir(tmp_path):
    (tmp_path / 'config.py').write_text('model = dict(a=1)\n')
    for name in ('epoch_2.pth', 'best_accuracy_top1_epoch_1.pth'):
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / 'last_checkpoint').write_text('/elsewhere/epoch_2.pth')
    return tmp_path


def test_a_work_dir_is_read(work_dir):
    assert find_run(work_dir).checkpoint.name == 'best_accuracy_top1_epoch_1.pth'
    assert find_run(work_dir, 'last').checkpoint == work_dir / 'epoch_2.pth'
    (work_dir / 'best_accuracy_top1_epoch_1.pth').unlink()
    assert find_run(work_dir).checkpoint.name == 'epoch_2.pth'


def test_a_work_dir_that_is_none(work_dir, tmp_path):
    with pytest.raises(FileNotFoundError, match='does not exist'):
        find_run(tmp_path / 'nowhere')
    (work_dir / 'best_mIoU_epoch_1.pth').touch()
    with pytest.raises(ValueError, match=r'several best checkpoints .*best_mIoU'):
        find_run(work_dir)
    (work_dir / 'epoch_2.pth').unlink()
    with pytest.raises(FileNotFoundError, match=r'epoch_2\.pth'):
        find_run(work_dir, 'last')
    (work_dir / 'last_checkpoint').unlink()
    with pytest.raises(FileNotFoundError, match='holds no checkpoint'):
        find_run(work_dir, 'last')
    (work_dir / 'second.py').touch()
    with pytest.raises(ValueError, match=r'2 configs \(config\.py, second\.py\), not one'):
        find_run(work_dir)
    with pytest.raises(FileNotFoundError, match='gone'):
        check_run(Run(work_dir / 'config.py', work_dir / 'gone.pth', work_dir))


def test_a_result_belongs_to_weights_and_config(work_dir):
    run = find_run(work_dir)
    config = Config.fromfile(run.config)
    first = result_key(run, config)
    assert result_key(run, config) == first
    assert result_key(find_run(work_dir, 'last'), config) != first
    assert result_key(run, Config(dict(model=dict(a=2)))) != first


def test_facts_of_a_work_dir(work_dir):
    assert selection_facts(work_dir)['selection_seconds'] is None
    assert training_memory(work_dir) is None
    points = tuple(CurvePoint(step, step / 1000, 1.0, 0.5, 0.1) for step in (50, 75, 100))
    SelectionResult(
        75, 0.07, 5.2, 'PaperHFR', 'query', [9], 128, 3.5, 640, Curve('PaperHFR', 75, points),
        interval=(50, 100),
    ).save(work_dir / 'selection.json')  # fmt: skip
    facts = dict(
        criterion='PaperHFR', pick='75 (50 to 100)', selection_seconds=3.5,
        selection_evaluations=640,
    )  # fmt: skip
    assert selection_facts(work_dir) == {**facts, 'page': None}
    (work_dir / 'selection.html').touch()
    assert selection_facts(work_dir)['page'] == str(work_dir / 'selection.html')
    for start, memory in (('a', 100), ('b', 250)):
        log = work_dir / start / 'vis_data' / 'scalars.json'
        log.parent.mkdir(parents=True)
        log.write_text(json.dumps(dict(lr=1)) + '\n' + json.dumps(dict(memory=memory)) + '\n')
    assert training_memory(work_dir) == 250
