# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
import io

import numpy as np
import pytest
from PIL import Image
from skimage import data
from sklearn.datasets import load_digits

from mmaselect import select
from mmaselect.images.copies import count_different, thumbnail

PHOTOS = [data.astronaut(), data.coffee(), data.chelsea(), data.rocket()]


def jpeg(image, quality, share=1.0):
    """The image as a JPEG of a quality, at a share of its size."""
    height, width = (round(side * share) for side in image.shape[:2])
    stream = io.BytesIO()
    Image.fromarray(image).resize((width, height)).save(stream, 'jpeg', quality=quality)
    return np.asarray(Image.open(stream))


def different(images):
    return count_different([thumbnail(np.ascontiguousarray(image)) for image in images])


@pytest.mark.parametrize('photo', PHOTOS, ids=['astronaut', 'coffee', 'chelsea', 'rocket'])
def test_copies_of_a_photograph(photo):
    copies = [photo, photo.copy(), jpeg(photo, 95), jpeg(photo, 75), jpeg(photo, 50)]
    assert different(copies) == 1
    others = [photo, photo[:, ::-1], photo[16:-16, 16:-16], 255 - photo, np.rot90(photo)]
    assert different(others) == 5


def test_what_is_not_a_copy():
    digits = [np.repeat((d * 15).astype(np.uint8)[..., None], 3, -1) for d in
              load_digits().images[:300]]  # fmt: skip
    assert different(digits) == 300
    assert different([np.full((8, 8, 3), level, np.uint8) for level in range(20)]) == 20
    assert different([np.zeros((8, 8, 3), np.uint8), np.zeros((9, 5, 3), np.uint8)]) == 1
    pale = [120 + photo // 64 for photo in PHOTOS]
    assert different(pale) == 4, 'of low contrast'
    assert different([*PHOTOS, *(jpeg(photo, 60) for photo in PHOTOS)]) == 4


def test_many_are_compared_in_parts():
    rng = np.random.default_rng(0)
    images = list(rng.integers(0, 256, (600, 16, 16, 3), np.uint8))
    assert different(images + images[:400]) == 600


def test_a_selection_counts_copies_once(tiny_dit):
    options = dict(timesteps=[0, 500], cache=False, progress=False)
    with pytest.raises(ValueError, match=r'needs 4 images or more .* got 1, as 4 are copies'):
        select(tiny_dit, [jpeg(PHOTOS[0], quality) for quality in (95, 85, 75, 65, 50)], **options)
    found = select(tiny_dit, [*PHOTOS, jpeg(PHOTOS[1], 70)], **options)
    assert any('1 of 5 images are copies of others' in str(one) for one in found.warnings)
