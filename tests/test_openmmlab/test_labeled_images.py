# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Labeled images of both toolboxes, made here."""

import numpy as np
import pytest
import torch
from PIL import Image

from mmaselect.images import CalibrationSet, ImageFolder
from mmaselect.images.labeled import IGNORE_INDEX
from mmaselect.openmmlab.labeled_images import build_labeled_images


@pytest.fixture(scope='module')
def classes(tmp_path_factory):
    """Config of a classification dataset: three classes of four images."""
    from mmpretrain.datasets import CustomDataset

    root = tmp_path_factory.mktemp('classes')
    rng = np.random.default_rng(0)
    for name in 'abc':
        (root / name).mkdir()
        for number in range(4):
            pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f'{number}.png')
    return dict(type=CustomDataset, data_root=str(root), pipeline=[])


@pytest.fixture(scope='module')
def maps(tmp_path_factory):
    """Config of a segmentation dataset: three images of 36 x 40, on disk 0, 1 and 2."""
    from mmseg.datasets import BaseSegDataset

    root = tmp_path_factory.mktemp('maps')
    rng = np.random.default_rng(0)
    for folder, shape in (('images', (36, 40, 3)), ('labels', (36, 40))):
        (root / folder).mkdir()
        for number in range(3):
            pixels = rng.integers(0, 3, shape, dtype=np.uint8)
            Image.fromarray(pixels).save(root / folder / f'{number}.png')
    return dict(
        type=BaseSegDataset, data_root=str(root), reduce_zero_label=True, img_suffix='.png',
        metainfo=dict(classes=('a', 'b'), palette=[[0, 0, 9], [0, 9, 0]]),
        data_prefix=dict(img_path='images', seg_map_path='labels'),
    )  # fmt: skip


def build(config, task='classification', size=32, number=None, seed=0):
    return build_labeled_images(config, task, size, number, seed)


def test_classes_and_pixels(classes):
    images = build(classes)
    batches = list(images.batches(5))
    assert torch.cat([b.labels for b in batches]).tolist() == [0] * 4 + [1] * 4 + [2] * 4
    expected = np.asarray(Image.open(images.source.name(0)))
    got = (batches[0].images[0].permute(1, 2, 0) + 1) * 127.5
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-3)


def test_choice_is_that_of_a_calibration_set(classes):
    images = build(classes, number=7, seed=3)
    assert images.chosen == CalibrationSet(ImageFolder(classes['data_root']), 32, 7, 3).chosen


def test_label_maps_are_those_of_mmsegmentation(maps):
    """reduce_zero_label: on disk 0, 1, 2; in training 255, 0, 1."""
    images = build(maps, 'segmentation', (36, 40))
    for position in range(3):
        path = images.source.name(position).replace('images', 'labels')
        on_disk = np.asarray(Image.open(path)).astype(int)
        expected = np.where(on_disk == 0, IGNORE_INDEX, on_disk - 1)
        assert images.labels([position])[0].numpy().tolist() == expected.tolist()
    batch = next(build(maps, 'segmentation', (18, 30)).batches(3))
    assert batch.images.shape == (3, 3, 18, 30)
    assert batch.labels.shape == (3, 18, 30)
    assert set(batch.labels.unique().tolist()) == {0, 1, IGNORE_INDEX}, 'labels are never blended'


def test_wrong_labels_are_said(classes, maps):
    with pytest.raises(ValueError, match='CustomDataset have neither gt_seg_map nor seg_map_path'):
        build(classes, 'segmentation').labels([0])
    with pytest.raises(ValueError, match=r'BaseSegDataset gives None. Use a single-label dataset'):
        build(maps, 'classification').labels([0])


def test_identity_tells_choices_apart(classes):
    assert build(classes, number=5).identity() == build(classes, number=5).identity()
    others = [dict(number=6), dict(number=5, seed=1), dict(number=5, size=24)]
    assert len({build(classes, **o).identity() for o in [dict(number=5), *others]}) == 4
