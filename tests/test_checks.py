# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
from pathlib import Path

import numpy as np
import pytest

from mmaselect import checks


def test_numbers_of_numpy_are_numbers():
    for value in (4, np.int64(4), np.uint8(4)):
        got = checks.whole_number('n', value, 1, 4)
        assert got == 4 and type(got) is int
    assert checks.three_numbers('mean', np.float32(2)) == (2, 2, 2)
    assert checks.three_numbers('mean', np.array([1, 2, 3])) == (1, 2, 3)
    assert checks.check_image_size('size', np.int32(8)) == 8
    assert checks.check_image_size('size', [8, 9]) == (8, 9)
    assert checks.check_path('folder', Path('x')) == Path('x')


@pytest.mark.parametrize('value', [1.0, 1e12, '4', True, None, b'4', np.float64(1), [1], 0, 5])
def test_what_is_no_number_is_named(value):
    with pytest.raises(ValueError, match=r'^batch must be a?.*1 to 4, got '):
        checks.whole_number('batch', value, 1, 4)


@pytest.mark.parametrize(
    ('check', 'value', 'message'),
    [
        (checks.seed_number, -1, r'x must be from 0 to 4294967295, got -1'),
        (checks.seed_number, 2**32, r'x must be from 0 to 4294967295'),
        (checks.check_image_size, 0, r'x must be from 1 to 16384, got 0'),
        (checks.check_image_size, (8, 8, 8), r'x must be a side in pixels, or \(height, width\)'),
        (checks.check_image_size, '12', r"x must be a side .*; got '12'"),
        (checks.flag, 1, 'x must be True or False, got 1'),
        (checks.check_path, '', "x must be a path, as text or a Path; got ''"),
        (checks.check_path, 'a\0b', 'x must be a path'),
        (checks.check_path, 'y' * 256, 'x must be a path whose names have 255 bytes at most'),
        (checks.check_path, 3, 'x must be a path'),
        (checks.keywords, 'abc', "x must be a dict with text keys; got 'abc'"),
        (checks.keywords, {1: 2}, 'x must be a dict with text keys'),
        (
            checks.three_numbers,
            float('nan'),
            r'x must be one number or three .* -1e9 to 1e9; got nan',
        ),
        (checks.three_numbers, [1, 2], 'x must be one number or three'),
        (checks.three_numbers, 'abc', 'x must be one number or three'),
        (checks.three_numbers, True, 'x must be one number or three'),
    ],
)
def test_errors_say_what_came_and_what_is_allowed(check, value, message):
    with pytest.raises(ValueError, match=f'^{message}'):
        check('x', value)


def test_choices_and_known_keys():
    assert checks.choice('x', 'a', ('a', 'b')) == 'a'
    with pytest.raises(ValueError, match=r"x must be one of a, b, got \['a'\]"):
        checks.choice('x', ['a'], ('a', 'b'))
    assert checks.keywords('x', None) == {}
    with pytest.raises(ValueError, match=r"x has unknown keys \['c'\]: it takes a, b"):
        checks.keywords('x', dict(a=1, c=2), ('a', 'b'))


def test_long_values_are_cut():
    assert len(checks.shorten('y' * 1000)) < 130
