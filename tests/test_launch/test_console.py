# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""What the terminal of a run has, and what only its log file has."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest

from mmaselect.launch.console import TerminalFilter
from mmaselect.openmmlab.messages import without_chatter

ROOT = Path(__file__).resolve().parents[2]


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


@pytest.mark.parametrize('options', [(), ('runner_type=FlexibleRunner',)])
def test_the_terminal_of_each_runner_is_short_and_its_log_file_long(options, tmp_path):
    config = ROOT / 'configs/demo/aselect_dit-digits_fcn_demo.py'
    place = ('blocks=2', 'feature=query', 'timestep=0')
    given = [*(f'model.backbone.{one}' for one in place), 'train_cfg.max_iters=2', *options]
    given += [f'{part}.dataset.num_canvases=4' for part in ('train_dataloader', 'val_dataloader')]
    command = [sys.executable, ROOT / 'tools/train.py', config, '--work-dir', tmp_path]
    done = subprocess.run(
        [*command, '--cfg-options', *given, 'default_hooks.logger.interval=1'],
        capture_output=True, text=True, check=True, timeout=300,
    )  # fmt: skip
    terminal = (done.stdout + done.stderr).splitlines()
    (log,) = tmp_path.glob('*/*.log')
    assert len(terminal) < 40 < 100 < len(log.read_text().splitlines())
    assert any('Iter(train)' in line for line in terminal)
    assert not any('Config:' in line or 'System environment' in line for line in terminal)
