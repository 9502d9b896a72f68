# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""The ``mmaselect`` command, as a user who has no checkout calls it."""

import json
import subprocess
import sys

import pytest

from mmaselect.cli import main


def test_list(capsys):
    assert main(['list']) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ['model', 'family', 'width'] and len(rows) > 20
    assert main(['list', 'facebook/*', '--exclude', '512']) == 0
    (row,) = capsys.readouterr().out.splitlines()[1:]
    assert row.split() == [
        'facebook/DiT-XL-2-256', 'dit', '1152', '28', '14', '16', '0.75', 'B', 'cc-by-nc-4.0'
    ]  # fmt: skip


def test_list_as_json(capsys):
    assert main(['list', '--family', 'sd3', '--family', 'flux', '--gated', '--json']) == 0
    models = json.loads(capsys.readouterr().out)
    assert {model['family'] for model in models} == {'sd3', 'flux'}
    assert all(model['gated'] and model['blocks'] == sum(model['stacks']) for model in models)
    assert main(['list', '--open', '--json', 'flux']) == 0
    assert not any(model['gated'] for model in json.loads(capsys.readouterr().out))


def test_list_criteria(capsys):
    assert main(['list', '--criteria']) == 0
    assert 'CrossSpectrumHFR' in capsys.readouterr().out.split()


def test_errors_are_one_line(capsys):
    assert main(['list', 'no-such-model']) == 1
    captured = capsys.readouterr()
    assert captured.err == 'mmaselect: error: no model fits; `mmaselect list` shows all of them\n'
    with pytest.raises(ValueError, match='no model fits'):
        main(['list', 'no-such-model', '--debug'])
    with pytest.raises(SystemExit):
        main([])


def test_help_teaches(capsys):
    for arguments in (['--help'], ['list', '--help']):
        with pytest.raises(SystemExit) as leave:
            main(arguments)
        assert leave.value.code == 0
        assert 'examples:\n' in capsys.readouterr().out


def test_list_imports_no_torch():
    code = (
        'import sys; from mmaselect.cli import main; main(["list", "sana"]); '
        'print("torch" in sys.modules)'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout.count('Sana_') == 2 and done.stdout.splitlines()[-1] == 'False'
