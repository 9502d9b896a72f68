# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
import math

import pytest

from mmaselect.analysis.stats import agreement, wilson_interval


def test_agreement_by_hand():
    found = agreement([0, 50, 100, 150], [1, 4, 3, 2], [70, 78, 80, 60], [72, 80.5, 82, 62])
    assert (found.pick, found.value, found.best_timestep, found.best) == (50, 78, 100, 80)
    assert found.regret == 2
    assert found.within and not found.at_end
    # Ranks 1 4 3 2 and 2 3 4 1: squared differences 1 1 1 1.
    assert found.spearman == pytest.approx(1 - 6 * 4 / (4 * 15))


def test_ties_go_to_the_smaller_timestep_and_ends_are_marked():
    found = agreement([0, 50, 100], [2, 2, 1], [50, 60, 60], [51, 61, 61])
    assert (found.pick, found.best_timestep) == (0, 50)
    assert found.at_end and not found.within


def test_undefined_scores_cannot_win():
    found = agreement([0, 50, 100], [None, 1, math.nan], [50, 60, 70], [51, 61, 71])
    assert found.pick == 50
    assert found.spearman is None


@pytest.mark.parametrize(
    'scores, message', [([None, None], 'no score is defined'), ([1.0], 'lengths differ')]
)
def test_bad_scores(scores, message):
    with pytest.raises(ValueError, match=message):
        agreement([0, 50], scores, [1, 2], [1, 2])


@pytest.mark.parametrize('correct, total', [(0, 10), (7, 10), (10, 10), (431, 1000)])
def test_wilson_by_its_formula(correct, total):
    z, p = 1.959963984540054, correct / total
    middle = (p + z**2 / (2 * total)) / (1 + z**2 / total)
    half = z / (1 + z**2 / total) * math.sqrt(p * (1 - p) / total + z**2 / (4 * total**2))
    low, high = wilson_interval(correct, total)
    assert (low, high) == pytest.approx((middle - half, middle + half), abs=1e-9)
