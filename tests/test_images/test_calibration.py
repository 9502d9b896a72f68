# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
import numpy as np
import pytest
import torch

from mmaselect.images import CalibrationSet, ImageArrays, ImageFolder


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


def test_images_are_taken_in_a_seeded_order_that_is_none_of_the_source(photos):
    source = ImageFolder(photos)
    images = [CalibrationSet(source, 32, 12, seed) for seed in (0, 0, 1)]
    assert images[0].order == images[1].order != images[2].order
    assert sorted(images[0].order) == list(range(12)) != images[0].order
    first = images[0].order[:3]
    batch = images[1].batch(first)
    assert batch.indices == first
    alone = {i: b.images[k] for b in images[0].batches(5) for k, i in enumerate(b.indices)}
    assert all(torch.equal(batch.images[k], alone[i]) for k, i in enumerate(first))


def test_fingerprint_sees_a_single_pixel():
    image = np.zeros((8, 8, 3), np.uint8)
    other = image.copy()
    other[3, 3, 0] = 1
    prints = [CalibrationSet(ImageArrays([i]), 8).fingerprint() for i in (image, image, other)]
    assert prints[0] == prints[1] != prints[2]


def test_ranks_hash_their_shares_and_get_the_fingerprint_of_all(photos):
    images = CalibrationSet(ImageFolder(photos), 32, num_images=7)
    shares = [images.hashes(rank, 3) for rank in range(3)]
    assert [sorted(share) for share in shares] == [[0, 3, 6], [1, 4], [2, 5]]
    assert images.fingerprint({**shares[0], **shares[1], **shares[2]}) == images.fingerprint()
    other_size = CalibrationSet(ImageFolder(photos), 24, num_images=7)
    assert other_size.hashes() == images.hashes()
    assert other_size.fingerprint() != images.fingerprint()
    with pytest.raises(ValueError, match='3 hashes are not those of 7 images'):
        images.fingerprint(shares[0])


class CountedFolder(ImageFolder):
    """Says how often it decoded each image."""

    def __init__(self, folder):
        super().__init__(folder)
        self.loaded = [0] * len(self)

    def load(self, index):
        self.loaded[index] += 1
        return super().load(index)


@pytest.mark.parametrize('images_kept', [24, 10, 0])
def test_an_image_is_decoded_once_if_memory_allows(photos, images_kept):
    source = CountedFolder(photos)
    images = CalibrationSet(source, 32, kept_bytes=images_kept * 32 * 32 * 3)
    images.hashes()
    first = torch.cat([batch.images for batch in images.batches(5)])
    assert source.loaded == [1] * images_kept + [2] * (24 - images_kept)
    # Given out and forgotten: memory is held only from the hash to the batch.
    again = torch.cat([batch.images for batch in images.batches(24)])
    assert sum(source.loaded) == 24 + (24 - images_kept) + 24
    assert torch.equal(first, again)


def test_nothing_to_choose_from():
    with pytest.raises(ValueError, match='num_images must be at least 1'):
        CalibrationSet(ImageArrays([np.zeros((8, 8, 3), np.uint8)]), 8, num_images=0)


def test_labels_where_each_image_has_one():
    pixels = [np.zeros((8, 8, 3), np.uint8)] * 3
    labeled = CalibrationSet(ImageArrays(pixels, labels=[2, 0, 1]), 8)
    assert labeled.labels_available
    assert [batch.labels.tolist() for batch in labeled.batches(2)] == [[2, 0], [1]]
    bare = CalibrationSet(ImageArrays(pixels), 8)
    assert not bare.labels_available
    assert next(bare.batches(2)).labels is None
