# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
import os
import tempfile
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


def test_links_are_followed_and_what_is_skipped_is_counted(tmp_path, caplog):
    photo = Image.new('RGB', (4, 4))
    folder, elsewhere = tmp_path / 'folder', tmp_path / 'elsewhere'
    for path in ('a.png', '.hidden.png', '._a.png', '.ipynb_checkpoints/a.png', 'sub/b.JPG'):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        photo.save(folder / path)
    (folder / 'notes.txt').write_text('no image')
    elsewhere.mkdir()
    photo.save(elsewhere / 'c.png')
    (folder / 'linked').symlink_to(elsewhere)
    (folder / 'd.png').symlink_to(elsewhere / 'c.png')
    (folder / 'sub' / 'loop').symlink_to(folder)
    (elsewhere / 'loop').symlink_to(elsewhere)
    (folder / 'gone.png').symlink_to(tmp_path / 'nowhere')
    os.mkfifo(folder / 'pipe.png')
    source = ImageFolder(folder)
    names = [path.relative_to(folder).as_posix() for path in source.paths]
    assert names == ['a.png', 'd.png', 'linked/c.png', 'sub/b.JPG']
    assert (
        '4 images; skipped 8: 3 hidden, 1 links into nothing, 2 links to a folder that they lie '
        'in, 1 of other suffixes, 1 pipes, sockets or devices'
    ) in caplog.text


def test_several_folders(tmp_path):
    for name in ('b', 'a'):
        (tmp_path / name).mkdir()
        Image.new('RGB', (4, 4)).save(tmp_path / name / 'x.png')
    source = ImageFolder([tmp_path / 'b', str(tmp_path / 'a')])
    assert source.paths == [tmp_path / 'b' / 'x.png', tmp_path / 'a' / 'x.png']
    with pytest.raises(ValueError, match='list of image folders is empty'):
        ImageFolder([])
    with pytest.raises(FileNotFoundError, match='nowhere'):
        ImageFolder([tmp_path / 'a', tmp_path / 'nowhere'])


def test_a_sub_folder_that_cannot_be_read_is_named():
    """As a user who is not root, whom nothing is forbidden."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        Image.new('RGB', (4, 4)).save(folder / 'x.png')
        (folder / 'private').mkdir()
        (folder / 'private').chmod(0)
        is_root = os.geteuid() == 0
        if is_root:
            os.seteuid(65534)
        try:
            with pytest.raises(PermissionError, match=r'folder of images cannot be read.*private'):
                ImageFolder(folder)
        finally:
            if is_root:
                os.seteuid(0)
            (folder / 'private').chmod(0o755)


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
    with pytest.raises(ValueError, match=r'images is one image, \(8, 8, 3\): give a list'):
        ImageArrays(np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(ValueError, match=r'labels must be a whole number for each of the 1 images'):
        ImageArrays([np.zeros((8, 8, 3), np.uint8)], labels=[1, 2])
    with pytest.raises(ValueError, match=r'image 0: expected .* RGB, got \(8, 8, 3\) float64'):
        ImageArrays([np.zeros((8, 8, 3))]).load(0)
