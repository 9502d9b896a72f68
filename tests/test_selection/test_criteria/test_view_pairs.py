# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
import numpy as np
import pytest
import torch
from scipy.linalg import fractional_matrix_power
from sklearn.neighbors import NearestNeighbors
from torch.nn import functional as F
from two_processes import member_of_two, run_two

from mmaselect.images.views import ViewBoxes, ViewOptions, make_views
from mmaselect.registry import CRITERIA
from mmaselect.selection.criteria.view_pairs import (
    DenseCorrespondence,
    InstanceDiscrimination,
    InstanceRetrieval,
    InstanceSensitivity,
    ViewAlignment,
    overlap_points,
    standardized_match,
    whiten_pairs,
)

NAMES = (
    'InstanceRetrieval',
    'ViewAlignment',
    'InstanceSensitivity',
    'InstanceDiscrimination',
    'DenseCorrespondence',
)
every = pytest.mark.parametrize('name', NAMES)


def make_pairs(count=40, channels=6, noise=0.8, seed=0):
    """Feature maps of two views, alike but for noise, and where the views lie."""
    generator = torch.Generator().manual_seed(seed)
    shared = (
        torch.randn(count, channels, 1, 1, generator=generator)
        * torch.logspace(-1, 1, channels)[:, None, None]
    )
    first, second = (
        shared + noise * torch.randn(count, channels, 4, 5, generator=generator) for _ in range(2)
    )
    corner = torch.rand(count, 2, 2, generator=generator) * 0.3
    boxes = torch.cat([corner, corner + 0.7], -1)
    flipped = torch.rand(count, 2, generator=generator) < 0.5
    return first, second, ViewBoxes(boxes, flipped)


def score(criterion, first, second, where, batch=40):
    for start in range(0, len(first), batch):
        part = slice(start, start + batch)
        criterion.update(first[part], second[part], where=where[part])
    return criterion.compute()


def whitened(first, second, ridge):
    """By numpy and scipy: cosine similarities (N, N) of ridge-whitened, pooled features."""
    one, two = (maps.double().mean((2, 3)).numpy() for maps in (first, second))
    rows = np.concatenate([one, two])
    covariance = np.cov(rows.T, bias=True)
    ridged = covariance + ridge * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    white = (rows - rows.mean(0)) @ fractional_matrix_power(ridged, -0.5)
    white /= np.linalg.norm(white, axis=1, keepdims=True)
    return white[: len(one)], white[len(one) :]


def test_whitening_is_that_of_scipy():
    first, second, _ = make_pairs()
    one, two = whitened(first, second, 0.1)
    ours, others = whiten_pairs(first.mean((2, 3)), second.mean((2, 3)), 0.1)
    # The basis is arbitrary; angles are not.
    np.testing.assert_allclose((ours @ others.mT).numpy(), one @ two.T, atol=1e-6)


@pytest.mark.parametrize('outlier', [1, 300], ids=['even', 'massive'])
@pytest.mark.parametrize(('images', 'channels'), [(40, 81), (20, 1152), (5, 3072), (40, 80)])
def test_more_channels_than_rows_give_the_same_cosines(images, channels, outlier):
    generator = torch.Generator().manual_seed(channels)
    scale = torch.logspace(-2, 1, channels)
    first, second = scale * torch.randn(2, images, channels, generator=generator)
    second = (second + 2 * first).double()
    first, second = first.double() + 0.3, second + 0.3
    first[0], first[:, 0] = outlier * first[0], outlier * first[:, 0]
    rows = torch.cat([first, second])
    rows = rows - rows.mean(0)
    covariance = rows.mT @ rows / len(rows)
    ridged = covariance + 0.02 * covariance.trace() / channels * torch.eye(channels).double()
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(ridged), rows.mT, upper=False).mT
    one, two = F.normalize(white, dim=1).tensor_split(2)
    ours, others = whiten_pairs(first, second, 0.02)
    torch.testing.assert_close(ours @ others.mT, one @ two.mT, rtol=1e-10, atol=1e-10)
    found, wanted = (standardized_match(*pair) for pair in ((ours, others), (one, two)))
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


def test_retrieval_is_that_of_scikit_learn():
    first, second, where = make_pairs(noise=3.0)
    one, two = whitened(first, second, 0.1)
    truth = np.arange(len(one))
    found = [
        NearestNeighbors(n_neighbors=1, metric='cosine').fit(gallery).kneighbors(queries)[1][:, 0]
        for queries, gallery in ((one, two), (two, one))
    ]
    expected = np.mean([(indices == truth).mean() for indices in found])
    assert 0.1 < expected < 0.9
    result = score(InstanceRetrieval(), first, second, where)
    assert result['score'].item() == pytest.approx(expected)
    assert result['count'] == 40


def test_the_others_are_those_of_numpy():
    first, second, where = make_pairs(noise=2.0)
    one, two = whitened(first, second, 0.1)
    similar = one @ two.T
    diagonal = similar.diagonal()
    assert score(ViewAlignment(), first, second, where)['score'].item() == pytest.approx(
        diagonal.mean()
    )
    sensitivity = [(diagonal - s.mean(1)) / s.std(1) for s in (similar, similar.T)]
    assert score(InstanceSensitivity(ridge=0.1), first, second, where)[
        'score'
    ].item() == pytest.approx(np.mean(sensitivity))
    target = torch.arange(len(one))
    logits = torch.from_numpy(similar) / 0.2
    entropy = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    found = score(InstanceDiscrimination(temperature=0.2), first, second, where)['score']
    assert found.item() == pytest.approx(-entropy.item())


@every
def test_noise_lowers_the_score(name):
    scores = [
        score(CRITERIA.build(dict(type=name)), *make_pairs(noise=noise))['score'].item()
        for noise in (0.1, 1.0, 10.0)
    ]
    assert scores[0] > scores[1] > scores[2]


@every
def test_neither_batches_nor_their_order_change_anything(name):
    first, second, where = make_pairs()
    whole = score(CRITERIA.build(dict(type=name)), first, second, where)
    parts = score(CRITERIA.build(dict(type=name)), first, second, where, batch=7)
    back = torch.arange(40).flip(0)
    turned = score(CRITERIA.build(dict(type=name)), first[back], second[back], where[back])
    for other in (parts, turned):
        assert other['score'].item() == pytest.approx(whole['score'].item(), rel=1e-9)
    assert torch.allclose(turned['per_image'][back], whole['per_image'])


@every
def test_an_image_that_is_not_finite_is_left_out_and_counted(name):
    first, second, where = make_pairs()
    first[3, 0, 0, 0] = torch.nan
    result = score(CRITERIA.build(dict(type=name)), first, second, where, batch=9)
    assert (result['count'], result['nonfinite']) == (39, 1)
    assert result['score'].isfinite()
    assert result['per_image'][:, 0].isnan().nonzero().tolist() == [[3]]


@every
def test_without_images_the_score_is_nan(name):
    criterion = CRITERIA.build(dict(type=name))
    criterion.update(torch.zeros(0, 3, 4, 4), torch.zeros(0, 3, 4, 4), where=make_pairs()[2][:0])
    result = criterion.compute()
    assert result['score'].isnan()
    assert result['count'] == 0


@every
@pytest.mark.parametrize('channels', [3, 100])
def test_features_without_any_difference_score_without_an_error(name, channels):
    _, _, where = make_pairs()
    maps = torch.ones(40, channels, 4, 4)
    result = score(CRITERIA.build(dict(type=name)), maps, maps, where)
    assert result['score'].isfinite()


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(type='InstanceRetrieval', ridge=0), 'ridge must be above 0, got 0'),
        (dict(type='InstanceDiscrimination', temperature=-1), 'temperature must be above 0'),
        (dict(type='DenseCorrespondence', points=0), 'points must be a whole number above 0'),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        CRITERIA.build(arguments)


def test_one_map_alone_is_an_error():
    with pytest.raises(ValueError, match=r'2 feature map.*one per view, but got 1'):
        InstanceRetrieval().update(torch.ones(2, 3, 4, 4))


@pytest.mark.parametrize('flip', [False, True])
def test_places_of_two_views_are_one_place_of_the_image(flip):
    """Of an image whose values are its own coordinates, both views read the same values."""
    rows, columns = np.meshgrid(np.arange(64) * 4, np.arange(64) * 4, indexing='ij')
    image = np.stack([rows, columns, rows * 0], -1).astype(np.uint8)
    options = ViewOptions(flip=flip, pixels='all', scale=(0.7, 0.9))
    made = [make_views(image, 64, options, (0, index)) for index in range(12)]
    assert flip == any(views.flipped.any() for views in made)
    where = ViewBoxes(
        torch.from_numpy(np.stack([views.boxes for views in made])),
        torch.from_numpy(np.stack([views.flipped for views in made])),
    )
    pixels = torch.from_numpy(np.stack([views.pixels for views in made])).float()
    places = overlap_points(where, 4)
    read = [
        F.grid_sample(
            pixels[:, view].permute(0, 3, 1, 2), places[:, view, None], align_corners=False
        )[:, :2, 0]
        for view in range(2)
    ]
    assert (read[0] - read[1]).abs().max() < 3, 'four gray values are one pixel'
    assert read[0].std() > 10


def test_dense_needs_the_boxes():
    with pytest.raises(ValueError, match='where views lie'):
        DenseCorrespondence().update(torch.ones(2, 3, 4, 4), torch.ones(2, 3, 4, 4))


def test_views_without_a_common_part_are_an_error():
    where = ViewBoxes(torch.tensor([[[0, 0, 0.4, 0.4], [0.6, 0.6, 1, 1]]]), torch.zeros(1, 2) > 0)
    with pytest.raises(ValueError, match='no part in common'):
        overlap_points(where, 2)


def score_share(rank, folder, shares):
    with member_of_two(rank, folder):
        results = []
        for start, stop in shares[rank]:
            for name in NAMES:
                criterion = CRITERIA.build(dict(type=name))
                first, second, where = (part[start:stop] for part in make_pairs())
                if stop > start:
                    results.append(score(criterion, first, second, where, batch=4))
                else:
                    results.append(criterion.compute())
        torch.save(results, f'{folder}/{rank}.pt')


@pytest.mark.filterwarnings('ignore:The ``compute`` method of metric')
def test_two_processes_score_as_one(tmp_path):
    # Unequal shares, and then none at all for the second process.
    shares = (((0, 9), (0, 40)), ((9, 40), (40, 40)))
    run_two(score_share, tmp_path, shares)
    expected = [score(CRITERIA.build(dict(type=name)), *make_pairs()) for name in NAMES] * 2
    for rank in range(2):
        found = torch.load(tmp_path / f'{rank}.pt')
        for result, single in zip(found, expected, strict=True):
            assert result['score'].item() == single['score'].item(), 'to the last bit'
            assert result['count'] == 40
