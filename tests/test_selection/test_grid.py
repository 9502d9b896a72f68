# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
import pytest

from mmaselect.selection import parse_timesteps


@pytest.mark.parametrize(
    ('spec', 'expected'),
    [
        ('0:1000:250', [0, 250, 500, 750]),
        ('5:8', [5, 6, 7]),
        ('80,0,80', [0, 80]),
        (40, [40]),
        ('40', [40]),
        ([999, 3], [3, 999]),
        (range(0, 30, 10), [0, 10, 20]),
    ],
)
def test_grids(spec, expected):
    assert parse_timesteps(spec, 1000) == expected


@pytest.mark.parametrize('spec', ['a:b', '0:10:0', '1:2:3:4', '', '10:0', [], 'x', None, [0.5j]])
def test_malformed_grids(spec):
    with pytest.raises(ValueError, match='START:STOP:STEP'):
        parse_timesteps(spec, 1000)


@pytest.mark.parametrize('spec', ['0:1001:1000', [-1], 1000])
def test_grids_out_of_range(spec):
    with pytest.raises(ValueError, match=r'0 \(clean\) to 999'):
        parse_timesteps(spec, 1000)
