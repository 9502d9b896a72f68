# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""NABirds, on a folder laid out as the official archive unpacks."""

import pytest

from mmaselect.datasets import NABirds

FILES = {
    'images.txt': 'aa-1 0817/aa1.jpg\nbb-2 0295/bb2.jpg\ncc-3 1010/cc3.jpg\n',
    'image_class_labels.txt': 'aa-1 817\nbb-2 295\ncc-3 1010\n',
    'train_test_split.txt': 'aa-1 1\nbb-2 0\ncc-3 1\n',
    # Inner nodes (0) and leaves without images (296) get no label.
    'classes.txt': '0 Birds\n295 Goldeneye (Adult male)\n296 Hawk\n817 Oak Titmouse\n1010 Jay',
}


@pytest.fixture
def root(tmp_path):
    (tmp_path / 'images').mkdir()
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def test_splits(root):
    train = NABirds(str(root))
    assert train.metainfo['classes'] == ('Goldeneye (Adult male)', 'Oak Titmouse', 'Jay')
    items = [train.get_data_info(index) for index in range(len(train))]
    assert [item['gt_label'] for item in items] == [1, 2]
    assert items[0]['img_path'] == str(root / 'images' / '0817' / 'aa1.jpg')
    test = NABirds(str(root), split='test')
    assert [item['gt_label'] for item in map(test.get_data_info, range(len(test)))] == [0]
    assert test.metainfo['classes'] == train.metainfo['classes']


def test_lists_that_differ(root):
    (root / 'train_test_split.txt').write_text('aa-1 1\n')
    with pytest.raises(ValueError, match='list 3, 3 and 1 images'):
        NABirds(str(root))


def test_missing_file(root):
    (root / 'classes.txt').unlink()
    with pytest.raises(FileNotFoundError, match=r"has no 'classes\.txt'") as info:
        NABirds(str(root))
    assert 'https://dl.allaboutbirds.org/nabirds' in str(info.value)


def test_unknown_split(root):
    with pytest.raises(ValueError, match="NABirds: split must be one of train, test, got 'all'"):
        NABirds(str(root), split='all')
