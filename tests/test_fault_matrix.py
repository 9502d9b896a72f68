# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""A part of the matrix of faults: ``fault_matrix.py`` has all, which take minutes."""

import pytest
from fault_matrix import FAULTS, Fault, Workshop, Wrong, judge, run

#: Groups that start no training.
QUICK = ('stored selections', 'cache folders', 'written files', 'images', 'images in memory',
         'data sets', 'arguments', 'model folders', 'checkpoints', 'feature folders',
         'frozen cache', 'leaderboard', 'names', 'unused')  # fmt: skip

SLOWER = ('pre-training', 'LoRA', 'quantized weights', 'image paths', 'look', 'entries')


@pytest.fixture(scope='module')
def shop(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('MMASELECT_CACHE', '')
        yield Workshop(tmp_path_factory.mktemp('workshop'))


@pytest.fixture(autouse=True)
def _in_the_workshop(shop, monkeypatch):
    monkeypatch.setattr(shop, 'here', shop.root)


@pytest.mark.parametrize(
    'group', [*QUICK, *(pytest.param(group, marks=pytest.mark.thorough) for group in SLOWER)]
)
def test_some_faults_of_a_group(group, shop):
    faults = [fault for fault in FAULTS if fault.group == group]
    assert len(faults) > 5
    told = []
    counts = run(faults[::6], shop, told.append)
    assert set(counts) <= {(group, 'right'), (group, 'clear')}, '\n'.join(told)


def test_the_matrix_tells_outcomes_apart(shop):
    def attempt(error):
        def raises(shop):
            raise error

        return raises

    def outcome(action, *words, **more):
        return judge(Fault('g', 'n', action, words, **more), shop)[0]

    assert outcome(lambda shop: None) == 'right'
    assert outcome(lambda shop: None, 'x.png') == 'wrong', 'it should have been refused'
    assert outcome(lambda shop: None, 'x.png', may=True) == 'right'
    assert outcome(attempt(Wrong('another pick')), 'x.png') == 'wrong'
    assert outcome(attempt(ValueError('x.png is empty')), 'x.png') == 'clear'
    assert outcome(attempt(ValueError('no')), 'x.png') == 'unclear'
    assert outcome(attempt(ValueError('x.png'))) == 'unclear', 'it should have been survived'
    assert outcome(attempt(ZeroDivisionError('x.png')), 'x.png') == 'unclear'
