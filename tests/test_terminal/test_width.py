# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""One rule for the width of what is printed."""

from mmaselect.terminal.tables import print_columns
from mmaselect.terminal.width import UNBOUNDED, console, terminal_width


def test_a_pipe_has_no_edge_unless_it_is_told(monkeypatch):
    monkeypatch.delenv('COLUMNS', raising=False)
    assert terminal_width() == UNBOUNDED  # pytest captures stdout
    monkeypatch.setenv('COLUMNS', '72')
    assert terminal_width() == 72 == console().width


def test_columns_break_in_the_last_one(monkeypatch, capsys):
    rows = [('name', 'what'), ('a' * 10, 'seven words that are not short at all')]
    monkeypatch.setenv('COLUMNS', '40')
    print_columns(rows)
    assert capsys.readouterr().out.splitlines() == [
        'name        what',
        f'{"a" * 10}  seven words that are not',
        f'{" " * 12}short at all',
    ]
    monkeypatch.delenv('COLUMNS')
    print_columns(rows)
    assert len(capsys.readouterr().out.splitlines()) == 2
