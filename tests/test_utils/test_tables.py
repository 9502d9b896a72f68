# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
import csv

from mmaselect.utils.tables import markdown_table, write_csv

ROWS = [dict(name='a|b', value=1.5), dict(name='c', value=None, more=2)]


def test_csv_comes_back(tmp_path):
    path = write_csv(tmp_path / 'new' / 't.csv', ROWS)
    with open(path, newline='') as file:
        assert list(csv.DictReader(file)) == [
            dict(name='a|b', value='1.5', more=''),
            dict(name='c', value='', more='2'),
        ]


def test_markdown():
    assert markdown_table(ROWS).splitlines() == [
        '| name | value | more |',
        '|---|---:|---:|',
        '| a\\|b | 1.5 | - |',
        '| c | - | 2 |',
    ]
