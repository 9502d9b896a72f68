# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
import json

import pytest
from mmengine.config import Config

from mmaselect.leaderboard.runs import (
    Run,
    check_run,
    dataset_name,
    find_run,
    result_key,
    selection_cost,
    setting_of,
    training_memory,
)
from mmaselect.leaderboard.table import PAPER_SIX, group_runs


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
    assert first['timestep'] == '75, 100'
    assert first['selection (s)'] == 15
    assert first['trained (M)'] == 1.235
    assert first['training GPU (MB)'] == 5000
    assert first['paper'] is None
    assert (second['deviation'], second['timestep'], second['selection (s)']) == (None, None, None)


def test_the_papers_numbers():
    (row,) = group_runs([result(dataset='Flowers102')])
    assert row['paper'] == 90.6
    (row,) = group_runs([result(dataset='Flowers102', metric='mIoU')])
    assert row['paper'] is None
    six = [result(name, 70 + i, dataset=name) for i, name in enumerate(PAPER_SIX)]
    assert len(group_runs(six[1:])) == 5, 'an average over five is not one over six'
    average = group_runs([*six, result('worse', 1.0, dataset='CUB')])[-1]
    assert (average['mean'], average['paper']) == (72.5, 82.5)


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
    assert selection_cost(work_dir)['selection_seconds'] is None
    assert training_memory(work_dir) is None
    (work_dir / 'selection.json').write_text(json.dumps(dict(seconds=3.5, model_evaluations=640)))
    assert selection_cost(work_dir) == dict(selection_seconds=3.5, selection_evaluations=640)
    for start, memory in (('a', 100), ('b', 250)):
        log = work_dir / start / 'vis_data' / 'scalars.json'
        log.parent.mkdir(parents=True)
        log.write_text(json.dumps(dict(lr=1)) + '\n' + json.dumps(dict(memory=memory)) + '\n')
    assert training_memory(work_dir) == 250
