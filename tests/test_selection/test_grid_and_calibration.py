# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmaselect.selection import CalibrationSet, ImageArrays, ImageFolder, parse_timesteps


@pytest.mark.parametrize(
    ('spec', 'expected'),
    [
        ('0:1000:250', [0, 250, 500, 750]),
        ('5:8', [5, 6, 7]),
        ('80,0,80', [0, 80]),
        (40, [40]),
        ('40', [40]),
        ([999, 3], [3, 999]),
        (range(0, 30, 10), [0, 10, 20]),
    ],
)
def test_grids(spec, expected):
    assert parse_timesteps(spec, 1000) == expected


@pytest.mark.parametrize('spec', ['a:b', '0:10:0', '1:2:3:4', '', '10:0', [], 'x', None, [0.5j]])
def test_malformed_grids(spec):
    with pytest.raises(ValueError, match='START:STOP:STEP'):
        parse_timesteps(spec, 1000)


@pytest.mark.parametrize('spec', ['0:1001:1000', [-1], 1000])
def test_grids_out_of_range(spec):
    with pytest.raises(ValueError, match=r'0 \(clean\) to 999'):
        parse_timesteps(spec, 1000)


def test_folder_images_are_rgb_and_in_path_order(tmp_path):
    for name, color in (('b.png', (0, 255, 0)), ('a/x.jpg', (255, 0, 0)), ('notes.txt', None)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        if color:
            Image.new('RGB', (9, 7), color).save(tmp_path / name)
        else:
            (tmp_path / name).write_text('no image')
    source = ImageFolder(tmp_path)
    assert [Path(source.name(i)).name for i in range(len(source))] == ['x.jpg', 'b.png']
    assert source.load(1).shape == (7, 9, 3)
    assert source.load(1)[0, 0].tolist() == [0, 255, 0]


def test_folder_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match='does not exist'):
        ImageFolder(tmp_path / 'nowhere')
    with pytest.raises(ValueError, match='holds no images'):
        ImageFolder(tmp_path)
    (tmp_path / 'broken.jpg').write_bytes(b'this is not a JPEG')
    images = CalibrationSet(ImageFolder(tmp_path), 32)
    with pytest.raises(ValueError, match=r'broken\.jpg.*cannot be read'):
        next(images.batches(1))


def test_batches_hold_pixels_in_the_models_range(photos):
    images = CalibrationSet(ImageFolder(photos), (32, 24), num_images=10)
    batches = list(images.batches(4))
    assert [len(batch.indices) for batch in batches] == [4, 4, 2]
    assert batches[0].images.shape == (4, 3, 32, 24)
    assert batches[0].images.min() >= -1 and batches[0].images.max() <= 1
    restored = ((batches[0].images[0] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    assert np.array_equal(restored, images.image(0))


def test_ranks_share_the_images_and_agree_on_them(photos):
    images = CalibrationSet(ImageFolder(photos), 32, num_images=11, seed=3)
    alone = {i: b.images[k] for b in images.batches(4) for k, i in enumerate(b.indices)}
    shared = {
        i: b.images[k]
        for rank in range(3)
        for b in images.batches(2, rank, 3)
        for k, i in enumerate(b.indices)
    }
    assert sorted(shared) == sorted(alone) == list(range(11))
    assert all(torch.equal(alone[i], shared[i]) for i in alone)


def test_choice_is_seeded(photos):
    source = ImageFolder(photos)
    chosen = [CalibrationSet(source, 32, 8, seed).chosen for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]
    assert CalibrationSet(source, 32, 1000).chosen == list(range(24))


def test_resizing_covers_and_cuts_the_centre():
    image = np.zeros((20, 60, 3), np.uint8)
    image[:, 20:40] = 255
    images = CalibrationSet(ImageArrays([image]), 20)
    assert images.image(0).shape == (20, 20, 3)
    assert (images.image(0) == 255).all()


def test_fingerprint_sees_a_single_pixel():
    image = np.zeros((8, 8, 3), np.uint8)
    other = image.copy()
    other[3, 3, 0] = 1
    prints = [CalibrationSet(ImageArrays([i]), 8).fingerprint() for i in (image, image, other)]
    assert prints[0] == prints[1] != prints[2]


def test_empty_and_malformed_arrays():
    with pytest.raises(ValueError, match='calibration set is empty'):
        ImageArrays([])
    with pytest.raises(ValueError, match='num_images must be at least 1'):
        CalibrationSet(ImageArrays([np.zeros((8, 8, 3), np.uint8)]), 8, num_images=0)
    floats = CalibrationSet(ImageArrays([np.zeros((8, 8, 3))]), 8)
    with pytest.raises(ValueError, match='uint8 RGB, got'):
        floats.image(0)
