# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""No argument ends in a traceback from the depths. ``argument_fuzz.py`` has the arguments."""

import pytest
from argument_fuzz import make_targets, run, what_is_unclear

from mmaselect import FeatureExtractor


@pytest.mark.filterwarnings('ignore')
def test_random_arguments_work_or_are_refused_in_clear_words(tiny_dit, photos, tmp_path):
    outcome = run(make_targets(tiny_dit, photos, tmp_path), count=300, seed=1)
    assert outcome.unclear == [], '\n'.join(outcome.unclear)
    assert sum(outcome.accepted.values()) > 40 and sum(outcome.refused.values()) > 150


def test_the_fuzz_tells_clear_errors_from_others(tiny_dit):
    with pytest.raises(ValueError) as caught:
        FeatureExtractor(tiny_dit, timestep=1.7)
    assert what_is_unclear(caught.value, ['timestep']) is None
    assert 'names none of' in what_is_unclear(caught.value, ['dtype'])
    with pytest.raises(ValueError) as caught:
        int('x')
    assert 'raised in' in what_is_unclear(caught.value, ['x'])
