# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
import csv

from mmaselect.terminal.tables import markdown_table, write_csv

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


def test_names_are_shown_as_they_are():
    """Names come from other people's configs."""
    name = '[click](javascript:x) <img src=x> `a` *b* \\\n| c & _d_ e_f'
    text = r'\[click\](javascript:x) \<img src=x\> \`a\` \*b\* \\ \| c \& \_d\_ e_f'
    assert markdown_table([dict(name=name)]).splitlines()[2] == f'| {text} |'


def test_no_cell_is_a_formula(tmp_path):
    cells = ['=1+1', '+cmd', '-cmd', '@sum', '\t=1', 'a=b', '-3', -3]
    path = write_csv(tmp_path / 't.csv', [dict(cell=cell) for cell in cells])
    with open(path, newline='') as file:
        found = [row['cell'] for row in csv.DictReader(file)]
    assert found == ["'=1+1", "'+cmd", "'-cmd", "'@sum", "'\t=1", 'a=b', '-3', '-3']
