# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.feature_selection import f_classif

from mmaselect.selection.criteria import FisherScore, fisher_score

CLASSES = 4


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def data():
    """60 maps whose channel means carry the class, more in some channels than in others."""
    labels = torch.arange(60) % CLASSES
    shift = randn(CLASSES, 6, seed=1) * torch.linspace(0, 1, 6) + 3
    return randn(60, 6, 5, 4) + shift[labels][:, :, None, None], labels


def score_of(feature, labels, batch=7, **options):
    criterion = FisherScore(CLASSES, **options)
    for start in range(0, len(labels), batch):
        part = slice(start, start + batch)
        criterion.update(feature[part], labels=labels[part])
    return criterion.compute()


def test_channel_mean_is_that_of_sklearns_f_statistics(data):
    feature, labels = data
    pooled = feature.double().mean((2, 3)).numpy()
    statistic, _ = f_classif(pooled, labels.numpy())
    expected = (statistic * (CLASSES - 1) / (60 - CLASSES)).mean()
    result = score_of(*data, reduction='channel_mean')
    assert result['score'].item() == pytest.approx(expected, rel=1e-5)
    assert fisher_score(
        torch.from_numpy(pooled), labels, CLASSES, 'channel_mean'
    ).item() == pytest.approx(expected, rel=1e-10)


def test_total_is_that_of_sklearns_scatter_matrices(data):
    feature, labels = data
    pooled = feature.double().mean((2, 3)).numpy()
    lda = LinearDiscriminantAnalysis(solver='eigen', store_covariance=True).fit(pooled, labels)
    within = 60 * lda.covariance_
    between = np.cov(pooled.T, bias=True) * 60 - within
    result = score_of(*data)
    assert result['score'].item() == pytest.approx(np.trace(between) / np.trace(within), rel=1e-5)
    assert result['count'] == 60
    assert result['std'].isnan()
    assert result['sem'].isnan()


def test_large_mean_does_not_drown_the_scatter(data):
    feature, labels = data
    pooled = feature.double().mean((2, 3))
    expected = fisher_score(pooled, labels, CLASSES, 'channel_mean').item()
    moved = fisher_score(pooled + 1000, labels, CLASSES, 'channel_mean').item()
    assert moved == pytest.approx(expected, rel=1e-6)


def test_label_maps_make_every_labeled_token_a_sample():
    feature = randn(3, 5, 4, 6)
    labels = torch.from_numpy(np.random.default_rng(0).integers(0, CLASSES, (3, 4, 6)))
    labels[0, 0, :3] = 255
    samples, targets = [], []
    for b, y, x in np.ndindex(3, 4, 6):
        if labels[b, y, x] != 255:
            samples.append(feature[b, :, y, x].numpy())
            targets.append(labels[b, y, x].item())
    statistic, _ = f_classif(np.array(samples, dtype=np.float64), targets)
    result = score_of(feature, labels, batch=2, reduction='channel_mean')
    expected = (statistic * (CLASSES - 1) / (69 - CLASSES)).mean()
    assert result['count'] == 69
    assert result['score'].item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize('dtype', [torch.uint8, torch.int64])
def test_label_maps_are_resized_to_the_token_grid(dtype):
    feature = randn(2, 5, 4, 6)
    coarse = torch.from_numpy(np.random.default_rng(0).integers(0, CLASSES, (2, 4, 6)))
    fine = coarse.repeat_interleave(8, 1).repeat_interleave(8, 2)
    # Only the pixels at the tokens' corners are of another class.
    fine[:, ::8, ::8] = (fine[:, ::8, ::8] + 1) % CLASSES
    expected = score_of(feature, coarse)['score']
    assert score_of(feature, fine.to(dtype))['score'] == expected


def test_ignored_value_may_be_negative_in_unsigned_maps():
    feature, labels = randn(2, 5, 4, 6), torch.zeros(2, 4, 6, dtype=torch.uint8)
    labels[:, 2:] = 1
    result = score_of(feature, labels, ignore_index=-1)
    assert result['count'] == 48


def test_without_class_structure_it_is_small_and_with_more_of_it_larger():
    labels = torch.arange(400) % CLASSES
    noise = randn(400, 8, 2, 2)
    shift = randn(CLASSES, 8, seed=1)[labels][:, :, None, None]
    scores = [score_of(noise + k * shift, labels)['score'].item() for k in (0, 0.5, 1, 2)]
    assert scores == sorted(scores)
    # The expectation of F is about 1 without structure.
    assert scores[0] == pytest.approx((CLASSES - 1) / (400 - CLASSES), rel=0.5)


@pytest.mark.parametrize('reduction', ['total', 'channel_mean'])
def test_last_bit_of_a_constant_channel_is_no_class_structure(data, reduction):
    _, labels = data
    feature = torch.full((60, 3, 2, 2), 0.1)
    feature[labels == 0] = torch.nextafter(torch.tensor(0.1), torch.tensor(1.0))
    assert score_of(feature, labels, reduction=reduction)['score'] == 0


@pytest.mark.parametrize('reduction', ['total', 'channel_mean'])
def test_constant_channels_score_zero(data, reduction):
    feature = torch.full((60, 6, 5, 4), 1234.567)
    result = score_of(feature, data[1], reduction=reduction)
    assert result['score'].item() == pytest.approx(0, abs=1e-3)
    assert score_of(feature * 0, data[1], reduction=reduction)['score'] == 0


def test_one_silent_channel_does_not_spoil_the_mean(data):
    feature, labels = data
    feature = torch.cat([feature, torch.zeros(60, 6, 5, 4)], 1)
    full = score_of(feature, labels, reduction='channel_mean')['score']
    half = score_of(*data, reduction='channel_mean')['score']
    assert full.item() == pytest.approx(half.item() / 2, rel=1e-10)


@pytest.mark.parametrize('bad', [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize('dense', [False, True])
def test_image_that_is_not_finite_is_counted_and_left_out(data, bad, dense):
    feature, labels = data
    if dense:
        labels = labels[:, None, None].expand(60, 5, 4)
    feature[5, 2, 3, 1] = bad
    kept = torch.arange(60) != 5
    result = score_of(feature, labels)
    expected = score_of(feature[kept], labels[kept])
    assert result['nonfinite'] == 1
    assert result['count'] == (59 * 20 if dense else 59)
    assert result['score'].item() == pytest.approx(expected['score'].item(), rel=1e-10)


@pytest.mark.parametrize('labels', [[0, 0, 0], [0, 1, 2]])
def test_undefined_score_is_nan_with_a_warning(labels):
    with pytest.warns(UserWarning, match='undefined: it takes samples of two classes'):
        result = score_of(randn(3, 5, 4, 4), torch.tensor(labels))
    assert result['score'].isnan()


def test_missing_labels():
    assert FisherScore.needs_labels
    with pytest.raises(ValueError, match='needs labels, but got none'):
        FisherScore(CLASSES).update(randn(2, 3, 4, 4))


@pytest.mark.parametrize(
    ('labels', 'message'),
    [
        (torch.tensor([0, 4]), r'must lie in \[0, 3\] .* got values from 0 to 4'),
        (torch.tensor([-1, 0]), 'got values from -1 to 0'),
        (torch.tensor([0.0, 1.0]), 'must be integers, but got torch.float32'),
        (torch.tensor([0, 1, 2]), r'labels of shape \(2,\) .* got \(3,\)'),
        (torch.zeros(2, 1, 4, 4, dtype=torch.long), r'got \(2, 1, 4, 4\)'),
        (torch.full((2, 8, 8), 77), 'got values from 77 to 77'),
    ],
)
def test_bad_labels(labels, message):
    with pytest.raises(ValueError, match=message):
        FisherScore(CLASSES).update(randn(2, 3, 4, 4), labels=labels)


def test_more_classes_than_the_ignored_value():
    criterion = FisherScore(1000)
    with pytest.raises(ValueError, match='ignore_index=255 is one of the 1000 classes'):
        criterion.update(randn(1, 3, 4, 4), labels=torch.zeros(1, 4, 4, dtype=torch.long))
    # A label for the whole image may be 255.
    criterion.update(randn(2, 3, 4, 4), labels=torch.tensor([255, 999]))
    assert criterion.counts[255] == 1


def test_other_number_of_channels():
    criterion = FisherScore(CLASSES)
    criterion.update(randn(2, 3, 4, 4), labels=torch.tensor([0, 1]))
    with pytest.raises(ValueError, match='has seen 3 channels, but got 5'):
        criterion.update(randn(2, 5, 4, 4), labels=torch.tensor([0, 1]))
    criterion.reset()
    criterion.update(randn(2, 5, 4, 4), labels=torch.tensor([0, 1]))


def test_bad_options():
    with pytest.raises(ValueError, match='num_classes must be an integer of 2 or more, but got 1'):
        FisherScore(1)
    with pytest.raises(ValueError, match='reduction must be one of'):
        FisherScore(2, reduction='mean')
    with pytest.raises(ValueError, match=r'samples \(N, C\) and labels \(N,\)'):
        fisher_score(randn(4, 3, 2), torch.tensor([0, 1, 0, 1]), 2)
