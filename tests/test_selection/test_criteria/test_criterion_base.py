# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""What holds for every criterion: the contract that the sweep relies on."""

import copy
import doctest
import importlib
import math
import pickle

import pytest
import torch
from two_processes import member_of_two, run_two

from mmaselect.registry import CRITERIA
from mmaselect.selection.criteria import Criterion, PerImageCriterion

CONFIGS = [
    {'type': 'HighFrequencyRatio'},
    {'type': 'HighFrequencyRatio', 'measure': 'amplitude', 'dims': 'channels'},
    {'type': 'PaperHFR'},
    {'type': 'CrossSpectrumHFR'},
    {'type': 'CrossSpectrumHFR', 'pooling': 'ratio_of_sums', 'reduction': 'total'},
    {'type': 'FisherScore', 'num_classes': 3},
    {'type': 'FisherScore', 'num_classes': 3, 'reduction': 'channel_mean'},
]
every_criterion = pytest.mark.parametrize(
    'config', CONFIGS, ids=lambda c: '-'.join(map(str, c.values()))
)


class Brightness(PerImageCriterion):
    def per_image(self, feature):
        return feature.mean((1, 2, 3))


def images(config, count=24):
    """Feature maps for update(), one image of them not finite, and labels."""
    generator = torch.Generator().manual_seed(0)
    signal = torch.randn(count, 12, 8, 10, generator=generator)
    draws = [
        signal + torch.randn(signal.shape, generator=generator)
        for _ in range(CRITERIA.get(config['type']).draws)
    ]
    if count:
        draws[-1][count // 2, 1, 2, 3] = torch.nan
    return draws, torch.arange(count) % 3


def run(criterion, draws, labels, batch=24):
    for start in range(0, len(labels), batch):
        part = slice(start, start + batch)
        criterion.update(*(draw[part] for draw in draws), labels=labels[part])
    return criterion.compute()


NUMBERS = {'score', 'std', 'sem', 'count', 'nonfinite'}


def assert_same(result, expected):
    assert result.keys() == expected.keys()
    assert result.keys() - {'per_image'} == NUMBERS
    for name, value in expected.items():
        torch.testing.assert_close(result[name], value, rtol=1e-6, atol=1e-12, equal_nan=True)


@every_criterion
@pytest.mark.parametrize('batch', [1, 5])
def test_split_into_batches_changes_nothing(config, batch):
    draws, labels = images(config)
    expected = run(CRITERIA.build(config), draws, labels)
    assert (expected['count'], expected['nonfinite']) == (23, 1)
    assert expected['score'].isfinite()
    assert all(expected[name].ndim == 0 for name in NUMBERS)
    assert_same(run(CRITERIA.build(config), draws, labels, batch), expected)


@every_criterion
def test_sums_are_float64_and_do_not_grow(config):
    criterion = CRITERIA.build(config)
    draws, labels = images(config)
    run(criterion, draws, labels)

    def states():
        sums = (name for name, first in criterion._defaults.items() if not isinstance(first, list))
        return {name: getattr(criterion, name) for name in sums}

    sizes = {name: state.shape for name, state in states().items()}
    for _ in range(3):
        run(criterion, draws, labels, batch=6)
    assert {name: state.shape for name, state in states().items()} == sizes
    assert all(state.dtype == torch.float64 for state in states().values())
    assert all(not state.requires_grad for state in states().values())


def test_what_each_image_adds_comes_with_the_score():
    draws, labels = images({'type': 'CrossSpectrumHFR'})
    result = run(CRITERIA.build({'type': 'CrossSpectrumHFR'}), draws, labels, batch=5)
    terms = result['per_image']
    assert terms.shape == (24, 2)
    assert terms.isfinite().all(1).tolist() == [index != 12 for index in range(24)]
    kept = terms[terms.isfinite().all(1)].sum(0)
    torch.testing.assert_close((kept[0] / kept[1]).double(), result['score'], rtol=1e-5, atol=0)


@every_criterion
def test_update_keeps_no_graph(config):
    criterion = CRITERIA.build(config)
    draws, labels = images(config)
    criterion.update(*(draw.requires_grad_() for draw in draws), labels=labels)
    assert not criterion.compute()['score'].requires_grad


@every_criterion
def test_pickle_and_deepcopy_carry_the_sums(config):
    draws, labels = images(config)
    criterion = CRITERIA.build(config)
    expected = run(criterion, draws, labels)
    for twin in (pickle.loads(pickle.dumps(criterion)), copy.deepcopy(criterion)):
        assert_same(twin.compute(), expected)
        twin.update(*draws, labels=labels)
        assert twin.compute()['count'] == 46
    assert_same(criterion.compute(), expected)


@every_criterion
def test_reset_forgets_and_works_in_and_out_of_inference_mode(config):
    draws, labels = images(config)
    criterion = CRITERIA.build(config)
    expected = run(criterion, draws, labels)
    with torch.inference_mode():
        criterion.reset()
        criterion.update(*(draw[:10] for draw in draws), labels=labels[:10])
    criterion.update(*(draw[10:] for draw in draws), labels=labels[10:])
    assert_same(criterion.compute(), expected)


@every_criterion
def test_call_gives_the_batch_and_adds_to_the_whole(config):
    draws, labels = images(config)
    criterion = CRITERIA.build(config)
    first = criterion(*(draw[:10] for draw in draws), labels=labels[:10])
    assert first['count'] == 10
    second = criterion(*(draw[10:] for draw in draws), labels=labels[10:])
    assert (second['count'], second['nonfinite']) == (13, 1)
    assert_same(criterion.compute(), run(CRITERIA.build(config), draws, labels))


@every_criterion
@pytest.mark.filterwarnings('ignore:The ``compute`` method of metric')
def test_without_images_the_score_is_nan(config):
    result = CRITERIA.build(config).compute()
    assert result['score'].isnan()
    assert (result['count'], result['nonfinite']) == (0, 0)


@every_criterion
def test_nothing_but_non_finite_images_is_nan_and_says_how_many(config):
    draws, labels = images(config)
    result = run(CRITERIA.build(config), [draw * torch.nan for draw in draws], labels)
    assert result['score'].isnan()
    assert (result['count'], result['nonfinite']) == (0, 24)


@every_criterion
@pytest.mark.parametrize(
    ('feature', 'error', 'message'),
    [
        (torch.ones(2, 3, 8), ValueError, r'\(B, C, H, W\), but got shape \(2, 3, 8\)'),
        (torch.ones(2, 3, 8, 8, dtype=torch.long), TypeError, 'float feature maps.*torch.int64'),
        ([1.0], TypeError, 'float feature maps.*list'),
    ],
)
def test_bad_feature(config, feature, error, message):
    criterion = CRITERIA.build(config)
    labels = torch.tensor([0, 1])
    with pytest.raises(error, match=message):
        criterion.update(*[feature] * criterion.draws, labels=labels)
    with pytest.raises(ValueError, match='one per noise draw, but got 3'):
        criterion.update(*[torch.ones(2, 3, 8, 8)] * 3, labels=labels)


def test_mean_and_its_errors_of_a_per_image_score():
    feature = torch.randn(11, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    values = feature.double().mean((1, 2, 3))
    criterion = Brightness()
    result = run(criterion, [feature], torch.zeros(11), batch=4)
    torch.testing.assert_close(result['score'], values.mean(), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(result['std'], values.std(), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(result['sem'], values.std() / math.sqrt(11), rtol=1e-6, atol=1e-7)


def test_one_image_has_a_score_and_no_error():
    criterion = Brightness()
    criterion.update(torch.ones(1, 2, 4, 4))
    result = criterion.compute()
    assert result['score'] == 1
    assert result['std'].isnan()
    assert result['sem'].isnan()


def test_score_of_the_wrong_shape_is_an_error():
    class PerChannel(PerImageCriterion):
        def per_image(self, feature):
            return feature.mean((2, 3))

    with pytest.raises(ValueError, match=r'one number per image, shape \(2,\), but gave .*\(2, 3'):
        PerChannel().update(torch.ones(2, 3, 4, 4))


@pytest.mark.parametrize('plain', [False, True])
def test_users_criterion_can_be_registered_and_built(plain):
    if plain:
        given = CRITERIA.register_module(name='TestBrightness', module=Brightness)
    else:
        given = CRITERIA.register_module(name='TestBrightness')(Brightness)
    try:
        assert given is Brightness
        criterion = CRITERIA.build({'type': 'mmaselect.TestBrightness'})
        assert isinstance(criterion, Criterion)
        assert (criterion.draws, criterion.needs_labels) == (1, False)
    finally:
        CRITERIA.module_dict.pop('TestBrightness')


def score_share(rank, folder, shares):
    """One of two processes: score a share of the images, write what compute() says."""
    with member_of_two(rank, folder):
        results = []
        for start, stop in (shares[rank], ((0, 24), (24, 24))[rank]):
            for config in CONFIGS:
                draws, labels = images(config)
                criterion = CRITERIA.build(config)
                part = slice(start, stop)
                results.append(
                    run(criterion, [draw[part] for draw in draws], labels[part], batch=4)
                )
                # Sums go back to the rank's own, so that it can go on.
                own = criterion.counts.sum() if 'num_classes' in config else criterion.moments[0, 0]
                assert own <= stop - start
        torch.save(results, f'{folder}/{rank}.pt')


def test_two_processes_score_as_one(tmp_path):
    # Unequal shares, and then none at all for the second process.
    run_two(score_share, tmp_path, ((0, 9), (9, 24)))
    expected = [run(CRITERIA.build(config), *images(config)) for config in CONFIGS] * 2
    for rank in range(2):
        for result, single in zip(torch.load(tmp_path / f'{rank}.pt'), expected, strict=True):
            assert_same(result, single)


@pytest.mark.parametrize(
    'module', ['base', 'cross_spectrum', 'fisher_score', 'high_frequency_ratio', 'spectrum']
)
def test_examples_in_the_docstrings_run(module):
    result = doctest.testmod(importlib.import_module(f'mmaselect.selection.criteria.{module}'))
    assert result.attempted > 0
    assert result.failed == 0
