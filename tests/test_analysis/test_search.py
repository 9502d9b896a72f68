# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mmaselect.analysis.linear_probe import ProbeOptions, fit_probe
from mmaselect.analysis.search import (
    SearchPlan,
    _at_pixels,
    bootstrap_iou,
    class_areas,
)
from mmaselect.images.labeled import IGNORE_INDEX


def plan(study, **changes):
    options = ProbeOptions(**{'pixels_per_image': 16, **changes})
    return SearchPlan(study, None, None, 'val', options)


def test_accuracy_is_that_of_pooled_features(open_with, classification_config):
    study = open_with(classification_config, '--blocks', '0', '2')
    search, _ = plan(study).encode()
    rows = search.measure(0)
    assert [(row['block'], row['feature']) for row in rows] == [(0, 'query'), (2, 'query')]

    def pooled(images):
        maps = [batch.draws[0][2, 'query'] for batch in images.features(0)]
        return torch.cat(maps).mean((2, 3)).numpy()

    probe = fit_probe(pooled(search.train), search.train.labels.numpy(), 3)
    correct = probe.predict(pooled(search.test)) == search.test.labels.numpy()
    assert rows[1]['value'] == pytest.approx(100 * correct.mean())
    assert rows[1]['low'] < rows[1]['value'] <= rows[1]['high'] <= 100
    assert rows[1]['value'] > 60, 'three textures, and a chance of 33 %'
    assert search.evaluations == 36 + 24


def test_some_taps_only(open_with, classification_config):
    study = open_with(classification_config, '--blocks', '0', '2')
    search, _ = plan(study).encode()
    rows = search.measure(0, taps=[(2, 'query')])
    assert [(row['block'], row['feature']) for row in rows] == [(2, 'query')]
    assert rows == search.measure(0)[1:]


@pytest.mark.parametrize('size', [('36', '40'), ('30',)])
def test_miou_is_that_of_a_linear_head(open_with, segmentation_config, size):
    """Independent: features enlarged to every pixel, classified there, one confusion matrix."""
    study = open_with(segmentation_config, '--image-size', *size)
    search, _ = plan(study).encode()
    (row,) = search.measure(0)
    samples, labels, groups = search.training_samples(0)
    tap = (1, 'query')
    assert len(labels) == 8 * 16
    assert IGNORE_INDEX not in labels
    probe = fit_probe(samples[tap], labels, 3, search.options, groups)
    confusion = np.zeros((3, 3), int)
    for batch in search.test.features(0):
        maps = F.interpolate(batch.draws[0][tap], scale_factor=4.0, mode='bilinear')
        height, width = batch.labels.shape[1:]
        pixels = maps[:, :, :height, :width].permute(0, 2, 3, 1).reshape(-1, 16).numpy()
        truth = batch.labels.flatten().numpy()
        kept = truth != IGNORE_INDEX
        np.add.at(confusion, (truth[kept], probe.predict(pixels)[kept]), 1)
    union = confusion.sum(0) + confusion.sum(1) - np.diag(confusion)
    expected = 100 * np.mean(np.diag(confusion)[:2] / union[:2])
    assert row['value'] == pytest.approx(expected, abs=0.1)
    assert row['low'] <= row['value'] <= row['high']
    assert row['value'] > 60, 'dark and bright'


def test_pixels_are_interpolated_as_an_enlarged_map():
    feature = torch.randn(5, 6, 7)
    enlarged = F.interpolate(feature[None], scale_factor=4.0, mode='bilinear')[0]
    rows, columns = torch.tensor([0, 3, 11, 23]), torch.tensor([0, 27, 5, 14])
    found = _at_pixels(feature, rows, columns, stride=4)
    torch.testing.assert_close(found, enlarged[:, rows, columns].T, atol=1e-5, rtol=0)


def test_areas_against_sets():
    predicted, truth = torch.randint(0, 3, (2, 4, 5)), torch.randint(0, 3, (2, 4, 5))
    truth[0, :2] = IGNORE_INDEX
    areas = class_areas(predicted, truth, 3)
    for image in range(2):
        kept = truth[image] != IGNORE_INDEX
        for label in range(3):
            a, b = ((x[image] == label) & kept for x in (predicted, truth))
            assert areas[image, 0, label] == (a & b).sum()
            assert areas[image, 1, label] == (a | b).sum()


def test_classes_that_never_occur_do_not_count():
    areas = np.array([[[5, 0], [10, 0]], [[10, 0], [10, 0]]])
    value, low, high = bootstrap_iou(areas)
    assert value == 75
    assert (low, high) == (50, 100)


def test_unlabeled_images_are_an_error(open_with, segmentation_config):
    study = open_with(segmentation_config)
    search, _ = plan(study).encode()
    search.train._batches = [
        (latent, torch.full_like(labels, IGNORE_INDEX), positions)
        for latent, labels, positions in search.train._batches
    ]
    with pytest.raises(ValueError, match='no labeled pixel'):
        search.measure(0)


def test_no_pixels_is_an_error():
    with pytest.raises(ValueError, match='pixels_per_image must be at least 1, got 0'):
        ProbeOptions(pixels_per_image=0)
