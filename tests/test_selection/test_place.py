# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Block and feature picked together with the timestep."""

import numpy as np
import pytest
import torch

from mmaselect.selection import InstanceSensitivity
from mmaselect.selection.place import choose_features, choose_place, joined_score

MIDDLE, LATE = (2, 'query'), (4, 'attention')


def make_terms(means, noise=0.1, images=64, shared=1.0):
    """Cell to (N, 2): scores of these means, with noise of each cell and of each image."""
    rng = np.random.default_rng(0)
    image = shared * rng.standard_normal(images)
    return {
        cell: np.stack(
            [mean + image + noise * centered(rng.standard_normal(images)), np.ones(images)], 1
        )
        for cell, mean in means.items()
    }


def centered(values):
    return values - values.mean()


def test_the_best_cell_of_all_is_picked():
    means = {(MIDDLE, 0): 1.0, (MIDDLE, 50): 1.2, (LATE, 0): 0.7, (LATE, 100): 1.5}
    place = choose_place(make_terms(means))
    assert (place.block, place.feature, place.timestep) == (4, 'attention', 100)
    assert place.contenders == ((LATE, 100),)
    assert place.decided


def test_what_makes_an_image_score_high_everywhere_does_not_hide_a_difference():
    """Cells differ by a tenth of the deviation over images, and are told apart all the same."""
    terms = make_terms({(MIDDLE, 0): 1.0, (LATE, 0): 1.1}, noise=0.05, shared=1.0)
    assert choose_place(terms).contenders == ((LATE, 0),)


def test_the_published_place_stays_where_images_cannot_tell():
    means = {(MIDDLE, 0): 1.0, (MIDDLE, 50): 1.19, (LATE, 0): 1.2}
    terms = make_terms(means, noise=0.5)
    place = choose_place(terms, published=MIDDLE)
    assert (place.block, place.feature, place.timestep) == (2, 'query', 50)
    assert not place.decided
    assert place.contenders[0] == (LATE, 0)
    assert choose_place(terms).block == 4
    # It goes where they can tell, and where it is the best it was decided.
    sharp = make_terms(means, noise=0.001)
    assert choose_place(sharp, published=MIDDLE).block == 4
    assert choose_place(sharp, published=LATE).decided


def test_a_higher_confidence_keeps_more_contenders():
    means = {(MIDDLE, t): 1.0 + t / 1000 for t in range(0, 500, 50)}
    terms = make_terms(means, noise=0.5)
    counts = [
        len(choose_place(terms, confidence=confidence).contenders) for confidence in (0.6, 0.999)
    ]
    assert counts[0] < counts[1]


def test_a_score_is_a_ratio_of_sums():
    terms = {(MIDDLE, 0): np.array([[1.0, 1], [1, 3]]), (LATE, 0): np.array([[1.0, 1], [0, 1]])}
    place = choose_place(terms)
    assert (place.block, place.score) == (2, 0.5)


def test_cells_of_different_images_are_refused():
    terms = make_terms({(MIDDLE, 0): 1.0, (LATE, 0): 2.0})
    terms[LATE, 0] = terms[LATE, 0][:-1]
    with pytest.raises(ValueError, match=r'same images, got \[63, 64\]'):
        choose_place(terms)
    with pytest.raises(ValueError, match='same images'):
        choose_place({})


# -- several features of one pass ----------------------------------------------------------------
def describe(signal, noise, seed):
    """(N, 2, D): both views of an image share the signal, and have noise of their own."""
    generator = torch.Generator().manual_seed(seed)
    draw = torch.randn(len(signal), 2, signal.shape[1], generator=generator)
    return signal[:, None] + noise * draw


def test_joined_score_is_that_of_the_criterion():
    signal = torch.randn(48, 6, generator=torch.Generator().manual_seed(0))
    rows = describe(signal, 0.5, 1)
    meter = InstanceSensitivity()
    meter.update(*(view[..., None, None] for view in rows.unbind(1)))
    assert joined_score([rows]) == pytest.approx(float(meter.compute()['score']), rel=1e-6)
    # Joined with itself at another scale, nothing is gained and nothing drowned.
    halves = [rows[..., :3], 1000 * rows[..., 3:]]
    assert joined_score(halves) > 0.9 * joined_score([rows])


def test_what_the_first_lacks_is_added_and_not_what_it_has():
    signal = torch.randn(64, 12, generator=torch.Generator().manual_seed(0))
    one, other = signal.chunk(2, 1)
    first, same, lacking = (2, 'attention'), (2, 'output'), (1, 'query')
    descriptors = {
        first: describe(one, 0.5, 1),
        same: describe(one, 0.55, 2),
        lacking: describe(other, 0.8, 3),
        (3, 'key'): describe(torch.zeros(64, 6), 1.0, 4),
    }
    # By itself, what the first lacks is worse than what repeats it.
    assert joined_score([descriptors[same]]) > joined_score([descriptors[lacking]])
    assert list(choose_features(descriptors, first, 2)) == [first, lacking]
    chosen = choose_features(descriptors, first, 3)
    assert list(chosen) == [first, lacking, same]
    before = [descriptors[first], descriptors[lacking]]
    assert chosen[lacking] == joined_score(before)
    assert choose_features(descriptors, first, 1) == {first: joined_score([descriptors[first]])}


def test_a_constant_feature_adds_nothing():
    signal = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
    rows = describe(signal, 0.5, 1)
    assert joined_score([rows, torch.ones(32, 2, 4)]) <= joined_score([rows])


def test_bad_choices_of_features_are_refused():
    descriptors = {MIDDLE: torch.randn(8, 2, 3)}
    with pytest.raises(ValueError, match='not among the candidates'):
        choose_features(descriptors, LATE, 1)
    with pytest.raises(ValueError, match='got 2'):
        choose_features(descriptors, MIDDLE, 2)
