# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Digits in noise: what a canvas shows, how noisy it is, and that it is the same every time."""

import numpy as np
import pytest
from mmengine.registry import DefaultScope

from mmaselect.datasets import NoisyDigitsDataset


def items(**kwargs):
    dataset = NoisyDigitsDataset(**kwargs)
    return [dataset.get_data_info(index) for index in range(len(dataset))]


def test_four_squares_have_labels():
    for item in items(num_canvases=5):
        image, labels = item['img'], item['gt_seg_map']
        assert image.shape == (56, 56, 3) and image.dtype == np.uint8
        assert (image[..., 0] == image[..., 2]).all()
        for cell in (labels[:28, :28], labels[:28, 28:], labels[28:, :28], labels[28:, 28:]):
            known = cell[cell != 255]
            assert len(known) == 20 * 20 and len(set(known)) == 1 and known[0] < 10


def test_digits_are_of_their_class():
    """Squares of one class look more like one another than like those of other classes."""
    squares, classes = [], []
    for item in items(num_canvases=50, noise=0):
        labels, image = item['gt_seg_map'], item['img'][..., 0].astype(float)
        for top in (0, 28):
            for left in (0, 28):
                rows, columns = np.nonzero(labels[top : top + 28, left : left + 28] != 255)
                place = (
                    slice(top + rows[0], top + rows[-1] + 1),
                    slice(left + columns[0], left + columns[-1] + 1),
                )
                squares.append(image[place].ravel())
                classes.append(labels[place][0, 0])
    squares, classes = np.stack(squares), np.array(classes)
    distance = ((squares[:, None] - squares[None]) ** 2).sum(2)
    np.fill_diagonal(distance, np.inf)
    assert (classes[distance.argmin(1)] == classes).mean() > 0.85


def test_noise_has_its_deviation():
    (clean,), (noisy,) = items(num_canvases=1, noise=0), items(num_canvases=1, noise=0.1)
    middle = (clean['img'] > 60) & (clean['img'] < 190)
    difference = noisy['img'].astype(float) - clean['img']
    assert difference[middle].std() == pytest.approx(12.75, rel=0.2)


def test_same_every_time_and_independent_of_the_number():
    first, second = items(num_canvases=4), items(num_canvases=2)
    for one, other in zip(first, second, strict=False):
        np.testing.assert_array_equal(one['img'], other['img'])
    for other in (items(num_canvases=1, seed=1), items(num_canvases=1, split='val')):
        assert not np.array_equal(first[0]['img'], other[0]['img'])


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(split='test'), 'split must be one of train, val'),
        (dict(num_canvases=0), 'num_canvases is 0; it must be at least 1'),
        (dict(side=0), 'side is 0; it must be at least 1'),
        (dict(noise=-1), 'noise is -1; it must be from 0 to 2'),
    ],
)
def test_arguments(arguments, message):
    with (
        DefaultScope.overwrite_default_scope('mmseg'),
        pytest.raises(ValueError, match=message),
    ):
        NoisyDigitsDataset(**arguments)
