# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Stanford Dogs, on a folder laid out as the official archives unpack."""

import numpy as np
import pytest
from scipy.io import savemat

from mmaselect.datasets import StanfordDogs

TRAIN = [
    ('n02085620-Chihuahua/n02085620_1.jpg', 1),
    ('n02085782-Japanese_spaniel/n02085782_1.jpg', 2),
    ('n02113799-standard-poodle/n02113799_1.jpg', 3),
]
TEST = [
    ('n02085782-Japanese_spaniel/n02085782_2.jpg', 2),
    ('n02113799-standard-poodle/n02113799_2.jpg', 3),
]


def write_list(path, rows):
    files = np.empty((len(rows), 1), object)
    files[:, 0] = [name for name, _ in rows]
    labels = np.array([[label] for _, label in rows], np.uint8)
    savemat(path, dict(file_list=files, annotation_list=files, labels=labels))


@pytest.fixture(params=['', 'lists'])
def root(tmp_path, request):
    (tmp_path / 'Images').mkdir()
    (tmp_path / request.param).mkdir(exist_ok=True)
    write_list(tmp_path / request.param / 'train_list.mat', TRAIN)
    write_list(tmp_path / request.param / 'test_list.mat', TEST)
    return tmp_path


def test_splits(root):
    train = StanfordDogs(str(root))
    assert len(train) == 3
    assert train.metainfo['classes'] == ('Chihuahua', 'Japanese_spaniel', 'standard-poodle')
    item = train.get_data_info(2)
    assert item['gt_label'] == 2
    assert item['img_path'] == str(root / 'Images' / TRAIN[2][0])
    # The names of all classes, although the test images show two.
    test = StanfordDogs(str(root), split='test')
    assert [item['gt_label'] for item in map(test.get_data_info, range(len(test)))] == [1, 2]
    assert test.metainfo['classes'] == train.metainfo['classes']
    assert test.test_mode and not train.test_mode


def test_lists_that_contradict(root):
    folder = root / 'lists' if (root / 'lists').is_dir() else root
    write_list(folder / 'test_list.mat', [TEST[0], ('n02085782-Beagle/x.jpg', 1)])
    with pytest.raises(ValueError, match="label 1 to both 'Chihuahua' and 'Beagle'"):
        StanfordDogs(str(root))


def test_missing_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'there is no folder .*absent[\s\S]*Images'):
        StanfordDogs(str(tmp_path / 'absent'))
    (tmp_path / 'Images').mkdir()
    with pytest.raises(
        FileNotFoundError, match=r"has no 'train_list.mat', 'test_list.mat'"
    ) as info:
        StanfordDogs(str(tmp_path))
    assert 'http://vision.stanford.edu/aditya86/ImageNetDogs/' in str(info.value)


def test_unknown_split(root):
    with pytest.raises(
        ValueError, match="StanfordDogs: split must be one of train, test, got 'val'"
    ):
        StanfordDogs(str(root), split='val')
