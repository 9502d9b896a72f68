# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
import numpy as np
import pytest
import torch
from PIL import Image

from mmaselect.images import UnreadableImageError, load_rgb, resize_and_crop, to_model_range


def test_a_file_or_its_bytes(tmp_path):
    path = tmp_path / 'red.png'
    Image.new('P', (3, 2)).save(path)
    Image.new('RGB', (3, 2), (255, 0, 0)).save(path)
    assert load_rgb(path).tolist() == [[[255, 0, 0]] * 3] * 2
    from_bytes = load_rgb('elsewhere://red.png', lambda name: path.read_bytes())
    assert np.array_equal(from_bytes, load_rgb(path))


def test_every_way_to_be_unreadable_names_the_file(tmp_path, monkeypatch):
    Image.fromarray(np.random.randint(0, 256, (64, 64, 3), np.uint8)).save(tmp_path / 'x.png')
    whole = (tmp_path / 'x.png').read_bytes()
    (tmp_path / 'half.png').write_bytes(whole[: len(whole) // 2])
    (tmp_path / 'empty.jpg').write_bytes(b'')
    for name in ('half.png', 'empty.jpg', 'missing.png'):
        with pytest.raises(UnreadableImageError, match=rf'{name}.*cannot be read') as caught:
            load_rgb(tmp_path / name)
        assert caught.value.path == tmp_path / name
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 100)  # what Pillow takes for an attack
    with pytest.raises(UnreadableImageError, match=r'x\.png.*decompression bomb'):
        load_rgb(tmp_path / 'x.png')


def test_resizing_covers_and_cuts_the_center():
    image = np.zeros((20, 60, 3), np.uint8)
    image[:, 20:40] = 255
    assert (resize_and_crop(image, 20) == 255).all()
    assert resize_and_crop(image, 20).shape == (20, 20, 3)
    assert resize_and_crop(image, (10, 45)).shape == (10, 45, 3)
    assert resize_and_crop(image, (20, 60)) is image


@pytest.mark.parametrize('size', [32, (20, 30), (30, 20), 64])
def test_labels_follow_the_image(size):
    """A map painted as an image and cropped as one must stay on its pixels, but for the blur."""
    labels = np.zeros((40, 60), np.uint8)
    labels[10:30, 15:45] = 1
    image = np.repeat(labels[..., None] * 200, 3, axis=2)
    as_image = resize_and_crop(image, size)[..., 0].astype(int)
    as_labels = resize_and_crop(labels, size, Image.Resampling.NEAREST)
    assert as_labels.shape == as_image.shape
    clear = (as_image < 20) | (as_image > 180)
    assert clear.mean() > 0.7
    assert (as_labels[clear] == (as_image[clear] > 100)).all()
    assert as_labels[clear].mean() > 0.1


def test_models_range():
    assert to_model_range(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-1, 1]
