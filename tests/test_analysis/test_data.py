# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
import numpy as np
import pytest
import torch
from PIL import Image

from mmaselect.analysis.data import IGNORE_INDEX, resize_and_crop_labels
from mmaselect.selection import CalibrationSet, ImageFolder
from mmaselect.selection.calibration import resize_and_crop


@pytest.mark.parametrize('size', [32, (20, 30), (30, 20), 64])
def test_labels_follow_the_image(size):
    """A map painted as an image and cropped as one must stay on its pixels, but for the blur."""
    labels = np.zeros((40, 60), np.uint8)
    labels[10:30, 15:45] = 1
    image = np.repeat(labels[..., None] * 200, 3, axis=2)
    as_image = resize_and_crop(image, size)[..., 0].astype(int)
    as_labels = resize_and_crop_labels(labels, size)
    assert as_labels.shape == as_image.shape
    clear = (as_image < 20) | (as_image > 180)
    assert clear.mean() > 0.7
    assert (as_labels[clear] == (as_image[clear] > 100)).all()
    assert as_labels[clear].mean() > 0.1


def test_classes_and_images_of_a_classification_dataset(open_with, classification_config):
    images = open_with(classification_config).images('val', None)
    assert len(images) == 24
    batches = list(images.batches(10))
    labels = torch.cat([batch.labels for batch in batches])
    assert labels.tolist() == [0] * 8 + [1] * 8 + [2] * 8
    names = [images.source.name(index) for index in images.chosen]
    expected = np.asarray(Image.open(names[0]).convert('RGB'))
    got = (batches[0].images[0].permute(1, 2, 0) + 1) * 127.5
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-3)


def test_choice_is_that_of_a_sweep(open_with, classification_config):
    study = open_with(classification_config)
    images = study.images('train', 7)
    folder = classification_config.parent / 'stripes' / 'train'
    assert images.chosen == CalibrationSet(ImageFolder(folder), 32, 7, study.seed).chosen
    assert len(set(study.images('train', 30).labels(list(range(30))).tolist())) == 3


def test_label_maps_are_those_of_mmsegmentation(open_with, segmentation_config):
    """reduce_zero_label: on disk 0, 1, 2; in training 255, 0, 1."""
    study = open_with(segmentation_config, '--image-size', '36', '40')
    images = study.images('train', None)
    for position in range(len(images)):
        path = images.source.name(position).replace('images', 'labels')
        on_disk = np.asarray(Image.open(path)).astype(int)
        expected = np.where(on_disk == 0, IGNORE_INDEX, on_disk - 1)
        assert images.labels([position])[0].numpy().tolist() == expected.tolist()
    batch = next(iter(images.batches(3)))
    assert batch.images.shape == (3, 3, 36, 40)
    assert batch.labels.shape == (3, 36, 40)


def test_wrong_labels_are_said(open_with, classification_config, segmentation_config):
    from mmaselect.analysis.data import DatasetLabels

    classes = open_with(classification_config).images('train', 2).source.dataset
    with pytest.raises(ValueError, match='CustomDataset have neither gt_seg_map nor seg_map_path'):
        DatasetLabels(classes, 'segmentation').label_map(0)
    maps = open_with(segmentation_config).images('train', 2).source.dataset
    with pytest.raises(ValueError, match=r'BaseSegDataset gives None. Use a single-label dataset'):
        DatasetLabels(maps, 'classification').class_label(0)


def test_identity_tells_choices_apart(open_with, classification_config):
    study = open_with(classification_config)
    same = [study.images('train', 5).identity() for _ in range(2)]
    assert same[0] == same[1]
    others = [study.images('train', 6), study.images('val', 5)]
    assert len({same[0], *(images.identity() for images in others)}) == 3
