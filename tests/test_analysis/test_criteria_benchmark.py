# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
import csv
from pathlib import Path

import numpy as np
import pytest
from forks import run_script
from scipy.stats import spearmanr
from tiny_configs import write_classification, write_segmentation

from mmaselect.analysis.criteria_benchmark import (
    BlockResult,
    Case,
    benchmark_figure,
    benchmark_rows,
    load_cases,
    regret_figure,
    run_case,
    summarize,
)
from mmaselect.diffusion import FrozenDiT

ROOT = Path(__file__).resolve().parents[2]


def result(metric, scores, case='one', block=1, spread=0.0):
    metric = np.array(metric, float)
    shake = np.random.default_rng(0).normal(0, 1, (1000, len(metric))) * spread
    halves = np.broadcast_to(metric, (3, 2, len(metric)))
    return BlockResult(case, block, [0, 25, 50, 100], metric, metric + shake, halves, scores)


def test_a_row_says_what_a_pick_costs():
    measured = result([50.0, 60.0, 58.0, 40.0], {'good': [1, 2, 4, 0], 'none': [None] * 4})
    row = measured.row('good')
    assert (row['pick'], row['best'], row['regret']) == (50, 25, 2.0)
    assert row['within'] is False
    assert row['cross_fitted'] == 2.0, 'both halves agree'
    assert row['rank_correlation'] == pytest.approx(
        spearmanr([1, 2, 4, 0], [50, 60, 58, 40]).statistic
    )
    # The median timestep has 54: the oracle gains 6 points, the pick 4.
    assert row['gain'] == pytest.approx(4 / 6, abs=1e-4)
    assert measured.row('none') is None
    assert measured.row('always 100')['regret'] == 20.0
    assert measured.row('always 25')['rank_correlation'] is None


def test_a_difference_that_resampling_turns_round_is_within_the_noise():
    assert result([50.0, 60.0, 58.0, 40.0], {'a': [1, 2, 4, 0]}, spread=3).row('a')['within']
    assert not result([50.0, 60.0, 58.0, 40.0], {'a': [1, 2, 4, 0]}, spread=0.3).row('a')['within']


def test_the_best_of_equal_timesteps_is_no_better_where_it_was_not_chosen():
    """400 images, eight timesteps of equal accuracy: the highest is above each of them by luck."""
    rng = np.random.default_rng(0)
    regrets, fair = [], []
    for _ in range(40):
        outcomes = rng.random((8, 400)) < 0.5
        halves = np.empty((50, 2, 8))
        for split in halves:
            order = rng.permutation(400)
            split[:] = [100 * outcomes[:, part].mean(1) for part in (order[:200], order[200:])]
        metric = 100 * outcomes.mean(1)
        block = BlockResult('one', 1, list(range(8)), metric, metric[None], halves, {})
        regrets.append(metric.max() - metric[3])
        fair.append(block.cross_fitted_regret(3))
    assert np.mean(regrets) > 2
    assert abs(np.mean(fair)) < 4 * np.std(fair) / 40**0.5 < 2


def test_a_case_counts_once_however_many_blocks_it_has():
    rows = benchmark_rows(
        [
            result([60, 50, 50, 50], {'a': [0, 1, 0, 0]}),
            result([60, 50, 50, 50], {'a': [0, 1, 0, 0]}, block=2),
            result([60, 50, 50, 50], {'a': [1, 0, 0, 0]}, block=3),
            result([60, 58, 50, 50], {'a': [0, 1, 0, 0]}, case='two'),
        ]
    )
    table = {row['criterion']: row for row in summarize(rows)}
    assert next(iter(table)) == 'always 0', 'the best comes first'
    assert table['a']['cases'] == 2
    assert table['a']['mean_regret'] == pytest.approx((20 / 3 + 2) / 2, abs=0.01)
    assert (table['a']['worst_case'], table['a']['worst_block']) == (6.67, 10)
    assert table['a']['within'] == '1/4'
    assert table['always 0']['mean_regret'] == 0


def case(tiny_dit, root, task='classification', **changes):
    classes = dict(type='CustomDataset', data_root=str(root / 'stripes'))
    edges = dict(
        type='BaseSegDataset',
        data_root=str(root / 'edges'),
        img_suffix='.png',
        seg_map_suffix='.png',
        reduce_zero_label=True,
        data_prefix=dict(img_path='images', seg_map_path='labels'),
        metainfo=dict(classes=('a', 'b', 'c'), palette=[[0, 0, 9], [0, 9, 0], [9, 0, 0]]),
    )
    data = {
        'classification': dict(
            train=dict(classes, data_prefix='train'), test=dict(classes, data_prefix='test')
        ),
        'segmentation': dict(train=edges, test=edges),
    }[task]
    options = dict(
        name='tiny', pretrained=tiny_dit, task=task, num_classes=3, timesteps=[0, 900],
        blocks=[1, 3], image_size=32, num_train=12, num_test=6, num_images=6, **data,
    )  # fmt: skip
    return Case(**{**options, **changes})


CRITERIA = [
    dict(type='HighFrequencyRatio'),
    dict(type='FisherScore', num_classes=3, name='labels', tasks=['classification']),
    dict(type='InstanceSensitivity', views=dict(), name='views'),
    dict(type='InstanceSensitivity', views=dict(pixels='all'), name='views, all pixels'),
]


def test_a_case_is_measured_and_resumed(tiny_dit, tmp_path, monkeypatch):
    write_classification(tmp_path, tiny_dit)
    tiny = case(tiny_dit, tmp_path, corruption='noise', severity=1)
    first = run_case(tiny, CRITERIA, tmp_path / 'out')
    assert [r.block for r in first] == [1, 3]
    assert list(first[0].scores) == ['HighFrequencyRatio', 'labels', 'views', 'views, all pixels']
    assert all(np.isfinite(scores).all() for r in first for scores in r.scores.values())
    assert first[0].scores['views'] != first[0].scores['views, all pixels']
    assert first[0].draws.shape == (1000, 2)
    assert np.allclose(first[0].draws.mean(0), first[0].metric, atol=4)

    def must_not_run(*args, **kwargs):
        raise AssertionError('measured again')

    monkeypatch.setattr(FrozenDiT, 'features', must_not_run)
    again = run_case(tiny, CRITERIA, tmp_path / 'out')
    assert [r.metric.tolist() for r in again] == [r.metric.tolist() for r in first]
    with pytest.raises(ValueError, match='other settings'):
        run_case(case(tiny_dit, tmp_path, severity=2), CRITERIA, tmp_path / 'out')


def test_a_segmentation_case(tiny_dit, tmp_path):
    write_segmentation(tmp_path, tiny_dit)
    tiny = case(tiny_dit, tmp_path, 'segmentation', num_train=5, num_images=3, num_test=3)
    criteria = [*CRITERIA, dict(type='DenseCorrespondence', views=dict(), name='dense')]
    results = run_case(tiny, criteria, tmp_path / 'out')
    assert list(results[0].scores) == ['HighFrequencyRatio', 'views', 'dense', 'views, all pixels']
    assert 0 <= results[0].metric.min() <= results[0].metric.max() <= 100
    assert benchmark_figure(results, ['views', 'dense']).get_supxlabel() == 'timestep'
    table = summarize(benchmark_rows(results))
    (axis,) = regret_figure(table).axes
    assert [bar.get_width() for bar in axis.patches] == [row['mean_regret'] for row in table]
    names = [label.get_text() for label in axis.get_yticklabels()]
    assert names == [row['criterion'] for row in table] and 'points' in axis.get_xlabel()


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('cases = []', 'must hold `cases` and `criteria`'),
        ('cases = [dict(name="a")]\ncriteria = [dict(type="x")]', 'an entry of `cases` is wrong'),
    ],
)
def test_a_wrong_config(tmp_path, text, message):
    path = tmp_path / 'cases.py'
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        load_cases(path)


def test_the_packages_own_cases_are_well_formed():
    config, cases = load_cases(ROOT / 'benchmarks' / 'criteria_cases.py')
    assert len(cases) >= 20
    assert {'classification', 'segmentation'} == {case.task for case in cases}
    names = [entry.get('name', entry['type']) for entry in config.criteria]
    assert set(config.shown) <= set(names)


def test_the_tool(tiny_dit, tmp_path):
    write_classification(tmp_path, tiny_dit)
    tiny = case(tiny_dit, tmp_path)
    values = {**tiny.__dict__}
    config = tmp_path / 'cases.py'
    config.write_text(f'cases = [{values!r}]\ncriteria = {CRITERIA!r}\nshown = ["views"]\n')
    tool = ROOT / 'tools' / 'analysis_tools' / 'criteria_benchmark.py'
    printed = run_script(tool, config, '--out', tmp_path / 'out', log=tmp_path / 'printed')
    assert '1 cases, 2 blocks' in printed
    rows = list(csv.DictReader((tmp_path / 'out' / 'rows.csv').open()))
    # Two blocks; four criteria and those controls that are on the grid (0).
    assert len(rows) == 2 * 5
    for name in ('summary.csv', 'summary.md', 'curves.png'):
        assert (tmp_path / 'out' / name).stat().st_size > 100
