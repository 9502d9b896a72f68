# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""The demo's data: what it looks like, and that it is the same every time."""

import numpy as np
import pytest
import skimage.data
from mmengine.registry import DefaultScope

from mmaselect.datasets import PhotoCollageDataset


def items(**kwargs):
    dataset = PhotoCollageDataset(**kwargs)
    return [dataset.get_data_info(index) for index in range(len(dataset))]


def test_items():
    for item in items(num_collages=5, size=48):
        image, labels = item['img'], item['gt_seg_map']
        assert image.shape == (48, 48, 3) and image.dtype == np.uint8
        assert labels.shape == (48, 48) and labels.dtype == np.uint8
        assert len(np.unique(labels)) == 2 and labels.max() < 9


def test_same_every_time_and_independent_of_the_number():
    first, second = items(num_collages=4), items(num_collages=2)
    for one, other in zip(first, second, strict=False):
        np.testing.assert_array_equal(one['img'], other['img'])
        np.testing.assert_array_equal(one['gt_seg_map'], other['gt_seg_map'])
    other_seed = items(num_collages=2, seed=1)
    assert not np.array_equal(first[0]['img'], other_seed[0]['img'])
    validation = items(num_collages=2, split='val')
    assert not np.array_equal(first[0]['img'], validation[0]['img'])


def test_pixels_come_from_the_labeled_photograph_in_bgr():
    """The coffee cup is red, the rocket's sky is blue."""
    data = items(num_collages=60)
    classes = PhotoCollageDataset.METAINFO['classes']
    for name, stronger, weaker in (('coffee', 2, 0), ('rocket', 0, 2)):
        label = classes.index(name)
        pixels = np.concatenate([item['img'][item['gt_seg_map'] == label] for item in data])
        photograph = getattr(skimage.data, name)()  # RGB
        assert photograph[..., 2 - stronger].mean() > photograph[..., 2 - weaker].mean()
        assert pixels[:, stronger].mean() > pixels[:, weaker].mean() + 5


def test_through_a_pipeline():
    with DefaultScope.overwrite_default_scope('mmseg'):
        dataset = PhotoCollageDataset(
            num_collages=2, pipeline=[dict(type='LoadImageFromNDArray'), dict(type='PackSegInputs')]
        )
    packed = dataset[1]
    item = dataset.get_data_info(1)
    np.testing.assert_array_equal(packed['inputs'].permute(1, 2, 0).numpy(), item['img'])
    np.testing.assert_array_equal(
        packed['data_samples'].gt_sem_seg.data[0].numpy(), item['gt_seg_map']
    )
    assert len(dataset.metainfo['palette']) == len(dataset.metainfo['classes']) == 9


@pytest.mark.parametrize(
    'kwargs, message',
    [
        (dict(split='test'), "split must be one of train, val, got 'test'"),
        (dict(size=8), 'size is 8; it must be at least 16'),
        (dict(num_collages=0), 'num_collages is 0; it must be at least 1'),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        PhotoCollageDataset(**kwargs)
