# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""CamVid with eleven classes, and the converter that makes it from the original release."""

import re
from pathlib import Path

import numpy as np
import pytest
from forks import run_script
from PIL import Image

from mmaselect.datasets import CamVidDataset
from mmaselect.fetch.camvid import split_of

CONVERTER = Path(__file__).parents[2] / 'tools' / 'dataset_converters' / 'camvid.py'


def build(root, split='train', **kwargs):
    prefix = dict(img_path=f'images/{split}', seg_map_path=f'annotations/{split}')
    return CamVidDataset(data_root=str(root), data_prefix=prefix, **kwargs)


@pytest.fixture
def convert(tmp_path):
    """Runs the converter in a process of its own; what it prints."""

    def run(*arguments, code=0):
        return run_script(CONVERTER, *arguments, log=tmp_path / 'printed', code=code)

    return run


@pytest.fixture
def original(tmp_path):
    """One frame of each split; its labels are two known classes and void."""
    names = ('0001TP_006690', '0016E5_07959', 'Seq05VD_f00000')
    for name in names:
        Image.new('RGB', (8, 6), (10, 20, 30)).save(tmp_path / f'{name}.png')
        colors = np.zeros((6, 8, 3), np.uint8)
        colors[:, :4] = (64, 128, 192)  # SUVPickupTruck, a Car of the eleven
        colors[:3, 4:] = (192, 0, 192)  # MotorcycleScooter, a Bicyclist
        Image.fromarray(colors).save(tmp_path / f'{name}_L.png')
    return tmp_path


def test_converter_and_dataset(convert, original, tmp_path):
    out = tmp_path / 'out'
    assert '1 train, 1 val, 1 test' in convert(original, original, '--out', out, '--size', '4x3')
    for split in ('train', 'val', 'test'):
        dataset = build(
            out,
            split,
            pipeline=[dict(type='LoadImageFromFile'), dict(type='mmseg.LoadAnnotations')],
        )
        assert len(dataset) == 1
        item = dataset[0]
        assert item['img'].shape == (3, 4, 3)
        car, bicyclist = map(dataset.metainfo['classes'].index, ('Car', 'Bicyclist'))
        labels = item['gt_seg_map']
        assert (labels[:, :2] == car).all()
        assert (labels[0, 2:] == bicyclist).all()
        assert (labels[2, 2:] == 255).all()


def test_converter_splits_701_frames_as_papers_do(camvid_names):
    for split, names in camvid_names.items():
        assert {split_of(name) for name in names} == {split}


@pytest.fixture
def camvid_names(real_data):
    root = real_data('camvid11') / 'images'
    return {
        split: [path.stem for path in (root / split).iterdir()]
        for split in ('train', 'val', 'test')
    }


def test_converter_says_what_is_wrong(convert, original, tmp_path):
    empty = tmp_path / 'empty'
    empty.mkdir()
    assert 'No `*_L.png`' in convert(original, empty, code=1)
    assert 'lacks 3 of 3 frames, 0001TP_006690.png first' in convert(empty, original, code=1)
    noise = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    Image.fromarray(noise).save(original / '0016E5_07959_L.png')
    printed = convert(original, original, '--out', tmp_path / 'out', code=1)
    assert re.search(r'0016E5_07959_L.png: \d+ % of the pixels have none of the 32', printed)
    assert 'Traceback' not in printed


def test_image_suffix(convert, original, tmp_path):
    out = tmp_path / 'out'
    convert(original, original, '--out', out)
    frame = next((out / 'images' / 'train').iterdir())
    Image.open(frame).save(frame.with_suffix('.jpg'))
    with pytest.raises(ValueError, match=r'both \.jpg and \.png images'):
        build(out)
    assert build(out, img_suffix='.jpg').get_data_info(0)['img_path'].endswith('.jpg')
    frame.unlink()
    assert build(out).get_data_info(0)['img_path'].endswith('.jpg')
    frame.with_suffix('.jpg').unlink()
    with pytest.raises(ValueError, match=r'neither \.jpg nor \.png images'):
        build(out)


def test_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'there is no folder .*absent') as info:
        build(tmp_path / 'absent')
    assert 'tools/dataset_converters/camvid.py' in str(info.value)
    (tmp_path / 'images' / 'train').mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="has no 'annotations/train'"):
        build(tmp_path)
