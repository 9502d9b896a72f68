# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""The validation split cut from a training set."""

import numpy as np
import pytest
from mmengine.registry import DefaultScope
from PIL import Image

from mmaselect.datasets import hold_out_indices
from mmaselect.openmmlab.registries import DATASETS


@pytest.fixture(autouse=True)
def in_mmpretrain():
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        yield


def test_parts_are_disjoint_complete_and_seeded():
    labels = np.repeat(np.arange(10), 7)
    train, val = hold_out_indices(labels, 15, seed=3)
    assert len(val) == 15
    assert sorted([*train, *val]) == list(range(70))
    again = hold_out_indices(labels, 15, seed=3)[1]
    other = hold_out_indices(labels, 15, seed=4)[1]
    np.testing.assert_array_equal(val, again)
    assert not np.array_equal(val, other)


def test_every_class_gives_its_share():
    """CUB's case: 5,994 images of 200 classes, of which 600 are held out."""
    labels = np.repeat(np.arange(200), [30] * 194 + [29] * 6)
    train, val = hold_out_indices(labels, 600)
    assert (len(train), len(val)) == (5394, 600)
    given = np.bincount(labels[val], minlength=200)
    assert set(given) <= {2, 3, 4}
    uneven = np.repeat([0, 1], [90, 10])
    np.testing.assert_array_equal(np.bincount(uneven[hold_out_indices(uneven, 0.1)[1]]), [9, 1])


@pytest.mark.parametrize('num_val', [0, 4, 5, -1, 1.5, 0.0])
def test_bad_number(num_val):
    with pytest.raises(ValueError, match=f'num_val is {num_val} for 4 images'):
        hold_out_indices(np.zeros(4), num_val)


def build(folder, **kwargs):
    config = dict(
        type='mmaselect.HoldOut',
        part='train',
        num_val=0.25,
        dataset=dict(type='CustomDataset', data_root=str(folder)),
    )
    return DATASETS.build({**config, **kwargs})


@pytest.fixture
def folder(tmp_path):
    for name in ('bird', 'cat'):
        (tmp_path / name).mkdir()
        for number in range(8):
            Image.new('RGB', (4, 4), (number, 0, 0)).save(tmp_path / name / f'{number}.png')
    return tmp_path


def test_from_a_config(folder):
    train = build(folder)
    val = build(folder, part='val', pipeline=[dict(type='LoadImageFromFile')])
    assert (len(train), len(val)) == (12, 4)
    assert val.metainfo['classes'] == ('bird', 'cat')
    assert sorted(val.get_gt_labels()) == [0, 0, 1, 1]
    names = [{item['img_path'] for item in map(part.get_data_info, range(len(part)))}
             for part in (train, val)]  # fmt: skip
    assert len(names[0] | names[1]) == 16
    assert val[0]['img'].shape == (4, 4, 3)


def test_unknown_part(folder):
    with pytest.raises(ValueError, match="HoldOut: part must be one of train, val, got 'test'"):
        build(folder, part='test')
