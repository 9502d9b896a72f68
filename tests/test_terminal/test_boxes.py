# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Boxes hold their lines whole."""

from mmaselect.terminal.boxes import boxed


def test_lines_are_whole_and_plain():
    lines = ['a' * 300, '[bold]not markup[/bold]', 'C:\\folder']
    top, *middle, bottom = boxed(lines, 'title').splitlines()
    assert 'title' in top and set(bottom) == {'+', '-'}
    assert [line.strip('|').rstrip() for line in middle] == lines
    assert len({len(line) for line in (top, *middle, bottom)}) == 1
    assert boxed(lines).isascii()
