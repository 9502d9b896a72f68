# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""What the terminal of a run has, and what only its log file has."""

import logging

import pytest

from mmaselect.launch.console import TerminalFilter
from mmaselect.openmmlab.messages import without_chatter


@pytest.mark.parametrize(
    ('path', 'level', 'text', 'shown'),
    [
        ('mmengine/runner/runner.py', logging.INFO, '\n---\nSystem environment:', False),
        ('mmengine/runner/runner.py', logging.INFO, 'Config:\nmodel = dict()', False),
        ('mmengine/runner/runner.py', logging.INFO, 'Load checkpoint from a.pth', True),
        ('mmengine/hooks/logger_hook.py', logging.INFO, 'Epoch(train) [1][20/38] eta: 1', True),
        ('mmengine/hooks/logger_hook.py', logging.INFO, 'Exp name: digits', False),
        ('mmengine/runner/runner.py', logging.WARNING, 'something is wrong', True),
        ('x/logger.py', logging.WARNING, '"FileClient" will be deprecated in future.', False),
        ('x/mmaselect/engine/hooks/selection_hook.py', logging.INFO, 'timestep selection', True),
    ],
)
def test_what_a_terminal_shows(path, level, text, shown):
    record = logging.LogRecord('mmengine', level, path, 1, text, (), None)
    assert TerminalFilter().filter(record) is shown


def test_what_toolboxes_print_is_kept_but_for_one_line(capsys):
    with without_chatter():
        print('Could not import OneDL')
        print('something else')
    assert capsys.readouterr().out == 'something else\n'
