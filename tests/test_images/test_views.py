# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
import numpy as np
import pytest
from PIL import Image

from mmaselect.images import CalibrationSet, ImageArrays
from mmaselect.images.views import ViewOptions, make_views, split_pixels


def noise_image(height=32, width=32, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_split_pixels_share_none():
    """Changing the pixels of one color of the checkerboard changes one of the two images only."""
    image = noise_image(9, 12)
    first, second = split_pixels(image)
    white = np.add.outer(np.arange(9), np.arange(12)) % 2 == 0
    np.testing.assert_array_equal(first[white], image[white])
    np.testing.assert_array_equal(second[~white], image[~white])
    changed = image.copy()
    changed[white] = 255 - changed[white]
    assert (split_pixels(changed)[0] != first).any()
    np.testing.assert_array_equal(split_pixels(changed)[1], second)


def salt_and_pepper(image, share, seed=0):
    rng = np.random.default_rng(seed)
    lost = rng.uniform(size=image.shape[:2]) < share
    white = rng.uniform(size=image.shape[:2]) < 0.5
    return np.where(lost[..., None], np.where(white, 255, 0)[..., None], image).astype(np.uint8)


def ramp_image(side=64):
    ramp = np.linspace(40, 200, side).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(ramp[:, None, None], (side, side, 3)))


def test_impulse_noise_stays_as_frequent_in_the_fill_and_is_independent():
    """Where pixels are lost, views must be as bad as the images, each in its own places."""
    clean = ramp_image()
    white = np.add.outer(np.arange(64), np.arange(64)) % 2 == 0
    shares, both = [], []
    for seed in range(10):
        first, second = split_pixels(salt_and_pepper(clean, 0.15, seed), [seed])
        wrong = [np.abs(part.astype(int) - clean) > 30 for part in (first, second)]
        shares += [wrong[0][~white].mean(), wrong[1][white].mean()]
        both.append((wrong[0] & wrong[1]).mean())
    # The mean of four neighbors would be wrong in 0.4 of its values.
    assert np.mean(shares) == pytest.approx(0.15, abs=0.04)
    assert np.mean(both) == pytest.approx(0.15**2, abs=0.01)


def test_gaussian_noise_and_edges_are_filled_by_the_mean():
    rng = np.random.default_rng(0)
    noisy = ramp_image() + rng.normal(0, 40, (64, 64, 3))
    edges = np.where(np.arange(64)[:, None, None] % 16 < 8, 30, 220) * np.ones((64, 64, 3))
    for image in (noisy, edges):
        image = image.clip(0, 255).astype(np.uint8)
        padded = np.pad(image.astype(int), ((1, 1), (1, 1), (0, 0)), mode='reflect')
        around = padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:]
        mean = ((around + 2) // 4).astype(np.uint8)
        white = np.add.outer(np.arange(64), np.arange(64)) % 2 == 0
        first, second = split_pixels(image)
        differs = np.concatenate([(first != mean)[~white], (second != mean)[white]])
        assert differs.mean() < 0.01


def test_the_fill_depends_on_the_seed_alone():
    image = salt_and_pepper(ramp_image(), 0.15)
    one, same, other = (split_pixels(image, seed)[0] for seed in ([1, 2], [1, 2], [1, 3]))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()


def test_noise_of_the_image_is_independent_in_disjoint_views_only():
    correlation = {}
    for pixels in ('disjoint', 'all'):
        options = ViewOptions(scale=(1.0, 1.0), pixels=pixels)
        views = [make_views(noise_image(seed=s), 32, options, (0, s)).pixels for s in range(20)]
        one, two = (np.stack([v[i] for v in views]).astype(float).ravel() for i in (0, 1))
        correlation[pixels] = np.corrcoef(one, two)[0, 1]
    assert correlation['all'] == pytest.approx(1)
    assert abs(correlation['disjoint']) < 0.02


def test_a_smooth_image_is_hardly_changed_by_the_split():
    ramp = np.linspace(0, 255, 64).astype(np.uint8)
    image = np.broadcast_to(ramp[:, None, None], (64, 64, 3))
    for part in split_pixels(image):
        inner = (part.astype(int) - image)[1:-1, 1:-1]
        assert np.abs(inner).max() <= 1


@pytest.mark.parametrize('shape', [(40, 60), (60, 40), (7, 90), (1, 1), (2, 3)])
@pytest.mark.parametrize('size', [16, (12, 20)])
def test_any_shape_gives_views_of_the_size(shape, size):
    views = make_views(noise_image(*shape), size, ViewOptions(flip=True), (0, 1))
    height, width = (size, size) if isinstance(size, int) else size
    assert views.pixels.shape == (2, height, width, 3)
    assert views.pixels.dtype == np.uint8
    assert (views.boxes[:, 2:] > views.boxes[:, :2]).all()


def test_a_view_is_pillows_crop_of_the_part_that_its_box_names():
    image = np.asarray(Image.fromarray(noise_image(8, 8)).resize((200, 100), Image.BICUBIC))
    views = make_views(image, 50, ViewOptions(pixels='all'), (3, 4))
    for view, box in zip(views.pixels, views.boxes, strict=True):
        # The square in the middle of the image is what a calibration image keeps.
        top, left, bottom, right = (round(x * 100) for x in box)
        crop = Image.fromarray(image).crop((50 + left, top, 50 + right, bottom))
        expected = np.asarray(crop.resize((50, 50), Image.BICUBIC)).astype(int)
        assert np.abs(view - expected).max() <= 2


def test_views_are_of_different_scales_within_the_range():
    sides = []
    for index in range(60):
        boxes = make_views(noise_image(100, 100), 32, ViewOptions(), (0, index)).boxes
        sides += (boxes[:, 2] - boxes[:, 0]).tolist()
    assert 0.59 < min(sides) < 0.63
    assert 0.97 < max(sides) <= 1.0


def test_no_mirror_unless_asked_for():
    def flips(flip):
        options = ViewOptions(flip=flip)
        return [make_views(noise_image(), 32, options, (0, i)).flipped for i in range(30)]

    assert not np.any(flips(False))
    assert 0.3 < np.mean(flips(True)) < 0.7


def test_views_depend_on_seed_and_image_alone():
    images = ImageArrays([noise_image(20 + n, 30, n) for n in range(9)])

    def batches(seed=0, size=4, rank=0, world=1):
        images_set = CalibrationSet(images, 16, 9, seed, views=ViewOptions())
        return {
            index: (batch.views.images[i].numpy(), batch.views.where.boxes[i].numpy())
            for batch in images_set.batches(size, rank, world)
            for i, index in enumerate(batch.indices)
        }

    whole = batches()
    for other in (batches(size=2), {**batches(rank=0, world=2), **batches(rank=1, world=2)}):
        for index, (pixels, boxes) in whole.items():
            np.testing.assert_array_equal(other[index][0], pixels)
            np.testing.assert_array_equal(other[index][1], boxes)
    assert any((batches(seed=1)[index][0] != whole[index][0]).any() for index in whole)


def test_images_and_views_are_decoded_once():
    class Counting(ImageArrays):
        decoded = 0

        def load(self, index):
            self.decoded += 1
            return super().load(index)

    source = Counting([noise_image(seed=n) for n in range(5)])
    images = CalibrationSet(source, 16, 5, views=ViewOptions())
    images.fingerprint()
    assert len([batch.views for batch in images.batches(2)]) == 3
    assert source.decoded == 5


def test_a_set_without_views_says_so():
    with pytest.raises(ValueError, match='no views'):
        CalibrationSet(ImageArrays([noise_image()]), 16).image_views(0)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(scale=(0.8, 0.6)), r'views\.scale .* got \(0\.8, 0\.6\)'),
        (dict(scale=(0, 1)), r'views\.scale'),
        (dict(scale=0.5), r'views\.scale'),
        (dict(flip='yes'), r"views\.flip must be True or False, got 'yes'"),
        (dict(noise='none'), r"views\.noise must be one of own, shared, got 'none'"),
        (dict(pixels='half'), r"views\.pixels must be one of disjoint, all, got 'half'"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        ViewOptions(**options)
