# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmaselect.images import ImageArrays, ImageFolder


def test_folder_images_are_rgb_and_in_path_order(tmp_path):
    for name, color in (('b.png', (0, 255, 0)), ('a/x.jpg', (255, 0, 0)), ('notes.txt', None)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        if color:
            Image.new('RGB', (9, 7), color).save(tmp_path / name)
        else:
            (tmp_path / name).write_text('no image')
    (tmp_path / 'a_folder.png').mkdir()
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
    with pytest.raises(ValueError, match=r'broken\.jpg.*cannot be read'):
        ImageFolder(tmp_path).load(0)


def test_arrays_and_pil_images():
    array = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    gray = Image.new('L', (3, 2), 7)
    source = ImageArrays([array, Image.fromarray(array), gray], labels=[4, 5, 6])
    assert len(source) == 3
    assert np.array_equal(source.load(0), array) and np.array_equal(source.load(1), array)
    assert (source.load(2) == 7).all() and source.load(2).shape == (2, 3, 3)
    assert [source.label(i) for i in range(3)] == [4, 5, 6]
    assert ImageArrays([array]).label(0) is None


def test_empty_and_malformed_arrays():
    with pytest.raises(ValueError, match='calibration set is empty'):
        ImageArrays([])
    with pytest.raises(ValueError, match=r'image 0: expected .* RGB, got \(8, 8, 3\) float64'):
        ImageArrays([np.zeros((8, 8, 3))]).load(0)
