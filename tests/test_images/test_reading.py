# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
import os
import pickle
import struct

import cv2
import mmcv
import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from mmaselect.images import (
    CANVAS,
    UnreadableImageError,
    as_rgb,
    load_rgb,
    resize_and_crop,
    to_model_range,
)


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


@pytest.fixture(scope='module')
def photo():
    from skimage import data

    return Image.fromarray(data.astronaut()[:61, :80])


def toolbox(path):
    return mmcv.imread(path, channel_order='rgb')


@pytest.mark.parametrize(
    ('name', 'mode', 'options'),
    [
        ('x.jpg', 'RGB', dict(quality=75)),
        ('x.jpg', 'RGB', dict(quality=95, subsampling=0)),
        ('x.jpg', 'RGB', dict(progressive=True)),
        ('x.jpg', 'L', {}),
        *((f'x.{kind}', 'RGB', {}) for kind in ('png', 'bmp', 'webp', 'tiff', 'ppm')),
        *((f'x.{kind}', mode, {}) for mode in ('1', 'L', 'P') for kind in ('png', 'tiff')),
        ('x.pgm', 'L', {}),
        ('x.png', 'LA', {}),
        ('x.png', 'RGBA', {}),
        ('x.tiff', 'CMYK', {}),
    ],
)
def test_pixels_are_those_of_the_toolboxes(photo, tmp_path, name, mode, options):
    photo.convert(mode).save(tmp_path / name, **options)
    assert np.array_equal(load_rgb(tmp_path / name), toolbox(tmp_path / name))


def exif_block(*entries):
    """An EXIF block of raw entries (tag, type, count, four bytes)."""
    packed = [struct.pack('<HHI4s', *entry) for entry in entries]
    head = b'Exif\0\0II*\0' + struct.pack('<IH', 8, len(packed))
    return head + b''.join(packed) + bytes(4)


@pytest.mark.parametrize('kind', ['jpg', 'png', 'webp'])
def test_a_malformed_entry_of_exif_does_not_end_a_run(photo, tmp_path, kind, caplog):
    path, plain = tmp_path / f'x.{kind}', tmp_path / f'plain.{kind}'
    turned, text = (0x0112, 3, 1, b'\x06\0\0\0'), (0x011A, 2, 4, b'abc\0')
    photo.save(plain)
    photo.save(path, exif=exif_block(turned, text))
    upright = np.asarray(Image.open(plain).convert('RGB').transpose(Image.Transpose.ROTATE_270))
    with pytest.raises(TypeError, match='abs'), Image.open(path) as image:
        ImageOps.exif_transpose(image)  # what Pillow makes of it
    assert np.array_equal(load_rgb(path), upright)
    assert np.array_equal(as_rgb(Image.open(path)), upright)
    assert not caplog.records, 'the orientation is known'
    for block in (b'Exif\0\0garbage', exif_block((0x0112, 2, 4, b'top\0')), b'Exif\0\0II*\0'):
        photo.save(path, exif=block)
        assert np.array_equal(load_rgb(path), load_rgb(plain)), 'as it is stored'
    if kind != 'jpg':  # whose parser leaves such a block out by itself
        assert 'its EXIF data are malformed' in caplog.text and path.name in caplog.text


def test_whatever_a_decoder_raises_names_the_file(photo, tmp_path, monkeypatch):
    path = tmp_path / 'x.png'
    photo.save(path)
    for raised in (struct.error('unpack'), KeyError('x'), TypeError("'str'"), MemoryError()):

        def load(self, raised=raised):
            raise raised

        monkeypatch.setattr('PIL.PngImagePlugin.PngImageFile.load', load)
        with pytest.raises(UnreadableImageError, match=rf'x\.png.*{type(raised).__name__}'):
            load_rgb(path)
        with pytest.raises(ValueError, match='image 7'):
            as_rgb(Image.open(path), 'image 7')
    with pytest.raises(UnreadableImageError, match=r'far\.png.*ConnectionResetError') as caught:
        load_rgb('s3://far.png', lambda name: (_ for _ in ()).throw(ConnectionResetError()))
    copied = pickle.loads(pickle.dumps(caught.value))  # as from the worker of a loader
    assert str(copied) == str(caught.value) and copied.reason == caught.value.reason


@pytest.mark.parametrize('kind', ['jpg', 'png', 'webp'])
def test_orientation_is_applied(photo, tmp_path, kind):
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = tmp_path / f'{orientation}.{kind}'
        photo.save(path, exif=exif)
        assert np.array_equal(load_rgb(path), toolbox(path)), orientation
        assert np.array_equal(as_rgb(Image.open(path)), toolbox(path)), orientation
        assert load_rgb(path).shape == ((80, 61, 3) if orientation > 4 else (61, 80, 3))


@pytest.mark.parametrize('kind', ['png', 'tiff', 'pgm'])
@pytest.mark.parametrize('colors', [1, 3])
def test_sixteen_bits_keep_their_range(tmp_path, kind, colors):
    """A ramp over all of them: 255 / 65535 of each value, and not white but for one part in 256."""
    ramp = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    image = ramp if colors == 1 else np.dstack([ramp, ramp // 2, ramp // 3])
    path = tmp_path / (f'x.{kind}' if colors == 1 else f'x.{kind.replace("pgm", "ppm")}')
    cv2.imwrite(str(path), image[..., ::-1] if colors == 3 else image)
    got = load_rgb(path)
    expected = image / 257 if colors == 3 else np.dstack([image / 257] * 3)
    np.testing.assert_allclose(got, expected, atol=1)
    # One of the two rounds 16-bit color TIFF and PPM where the other cuts.
    allowed = 1 if colors == 3 and kind != 'png' else 0
    np.testing.assert_allclose(got.astype(int), toolbox(path), atol=allowed)
    assert np.array_equal(as_rgb(image), image >> 8 if colors == 3 else np.dstack([ramp >> 8] * 3))


def test_images_without_a_known_range_are_refused(tmp_path):
    for dtype, word in ((np.float32, 'floating-point'), (np.int32, 'whole')):
        path = tmp_path / f'{word}.tiff'
        Image.fromarray(np.ones((4, 4), dtype)).save(path)
        message = rf'{word}\.tiff.*its pixels are 32-bit {word} numbers, whose range is not known'
        with pytest.raises(UnreadableImageError, match=message):
            load_rgb(path)
    with pytest.raises(
        ValueError, match=r'image: expected .*float32: scale its values to 0 to 255'
    ):
        as_rgb(np.ones((4, 4, 3), np.float32))


def test_transparency_is_laid_on_the_canvas(photo, tmp_path):
    alpha = np.tile(np.linspace(0, 255, 80).astype(np.uint8), (61, 1))
    image = np.dstack([np.asarray(photo), alpha])
    Image.fromarray(image).save(tmp_path / 'x.png')
    share = alpha[..., None] / 255
    expected = np.asarray(photo) * share + np.array(CANVAS) * (1 - share)
    for got in (load_rgb(tmp_path / 'x.png'), as_rgb(image), as_rgb(Image.fromarray(image))):
        np.testing.assert_allclose(got, expected, atol=0.51)
    # Grey ones are MMCV's own case; a palette may have a transparent color.
    Image.fromarray(image).convert('LA').save(tmp_path / 'grey.png')
    theirs = mmcv.imread(tmp_path / 'grey.png', channel_order='rgb', backend='pillow')
    np.testing.assert_allclose(load_rgb(tmp_path / 'grey.png'), theirs.astype(int), atol=1)
    palette = Image.new('P', (2, 1))
    palette.putpalette([255, 0, 0, 0, 255, 0])
    palette.putpixel((1, 0), 1)
    palette.save(tmp_path / 'p.png', transparency=1)
    assert load_rgb(tmp_path / 'p.png').tolist() == [[[255, 0, 0], list(CANVAS)]]


def test_what_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / 'pipe.png')
    with pytest.raises(UnreadableImageError, match=r'pipe\.png.*a pipe, a socket or a device'):
        load_rgb(tmp_path / 'pipe.png')
    with pytest.raises(UnreadableImageError, match='it is a folder and no regular file'):
        load_rgb(tmp_path)


@pytest.mark.parametrize(
    ('image', 'message'),
    [
        (np.zeros((3, 8, 8), np.uint8), r'the channels come last, so transpose it by \(1, 2, 0\)'),
        (np.zeros((8, 8, 5), np.uint8), 'the frozen model sees RGB, not 5 channels'),
        (np.zeros((0, 8, 3), np.uint8), r'got \(0, 8, 3\)'),
        (np.zeros((8, 8, 3), bool), 'got .* bool: scale its values'),
        ('x.png', "array or a PIL image, got 'x.png'"),
    ],
)
def test_arrays_that_are_no_images(image, message):
    with pytest.raises(ValueError, match=f'^photo: .*{message}'):
        as_rgb(image, 'photo')


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
