# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""What every tool says of a mistake: one line, and the traceback only on demand."""

import argparse
import importlib.util
from pathlib import Path

import pytest

from mmaselect.terminal.tool import in_one_line, make_tool_parser, run_tool

TOOLS = Path(__file__).resolve().parents[2] / 'tools'
STUDIES = ('block_feature_grid', 'fisher_score', 'frequency_maps')

#: Tool to a command line with a mistake in it, the error, and what is said of it.
MISTAKES = {
    'train.py': ('nowhere.py', FileNotFoundError, "no config file 'nowhere.py'"),
    'test.py': ('nowhere.py no.pth', FileNotFoundError, "no config file 'nowhere.py'"),
    'select_timestep.py': ('nowhere.py', FileNotFoundError, "no config file 'nowhere.py'"),
    'demo.py': ('--config nowhere.py', RuntimeError, 'training failed, .*console.log says why'),
    'leaderboard.py': ('nowhere', FileNotFoundError, "work directory 'nowhere' does not exist"),
    'reproduce.py': ('--only nowhere', ValueError, 'fits no row'),
    'pretrain_dit.py': ('--data nowhere --out o', FileNotFoundError, 'no folder'),
    'dataset_converters/camvid.py': ('a b', FileNotFoundError, 'give the folder of the labels'),
    'analysis_tools/probe_report.py': (
        'p --data nowhere --probe-data q',
        FileNotFoundError,
        'no folder',
    ),
    'analysis_tools/probe_timesteps.py': ('nowhere.py', FileNotFoundError, 'no config file'),
    'analysis_tools/criteria_benchmark.py': ('nowhere.py', FileNotFoundError, 'nowhere.py'),
    'analysis_tools/get_flops.py': ('nowhere.py', FileNotFoundError, 'no config file'),
    **{
        f'analysis_tools/{name}.py': ('nowhere.py --probe p', FileNotFoundError, 'nowhere|p')
        for name in STUDIES
    },
}
MISTAKES['analysis_tools/fisher_score.py'] = MISTAKES['analysis_tools/probe_timesteps.py']
MISTAKES['analysis_tools/frequency_maps.py'] = MISTAKES['analysis_tools/probe_timesteps.py']


def test_no_tool_is_left_out():
    found = {str(path.relative_to(TOOLS)) for path in TOOLS.rglob('*.py')}
    # Scripts for those who work on the package itself.
    assert {name for name in found if not name.startswith('dev/')} == {*MISTAKES}


@pytest.mark.parametrize('name', MISTAKES)
def test_mistakes_are_told_in_one_line(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    spec = importlib.util.spec_from_file_location(Path(name).stem, TOOLS / name)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    line, kind, message = MISTAKES[name]
    with pytest.raises(SystemExit, match=message) as stopped:
        run_tool(tool.main, line.split())
    assert '\n' not in stopped.value.code
    assert stopped.value.code.endswith('(--debug shows where)')
    assert stopped.value.__suppress_context__
    with pytest.raises(kind, match=message):
        run_tool(tool.main, [*line.split(), '--debug'])
    assert (TOOLS / name).read_text().endswith('    run_tool(main)\n')


def test_a_line_is_one_line():
    assert in_one_line(ValueError('first\n  second')) == 'first second'
    assert in_one_line(KeyError('no such criterion')) == 'no such criterion'
    assert in_one_line(MemoryError()) == 'MemoryError'


def test_exits_of_the_parser_pass_through(capsys):
    def main(argv):
        make_tool_parser('Does nothing.').parse_args(argv)

    with pytest.raises(SystemExit) as stopped:
        run_tool(main, ['--unknown'])
    assert stopped.value.code == 2
    assert 'unrecognized arguments: --unknown' in capsys.readouterr().err


def test_a_tool_is_called_as_the_user_called_it(monkeypatch):
    for typed, name in (
        (['tools/train.py', 'c.py'], 'train.py'),
        (['/usr/bin/mmaselect', 'train', 'c.py'], 'mmaselect train'),
        (['/usr/lib/mmaselect/__main__.py', 'train', 'c.py'], 'mmaselect train'),
    ):
        monkeypatch.setattr('sys.argv', typed)
        text = make_tool_parser('Trains.', 'examples:\n  %(prog)s c.py\n').format_help()
        assert text.startswith(f'usage: {name} [-h]') and f'\n  {name} c.py\n' in text


def test_help_keeps_the_lines_of_examples(capsys):
    parser = make_tool_parser('Does nothing.', 'examples:\n  one\n  two\n')
    assert isinstance(parser, argparse.ArgumentParser)
    parser.print_help()
    text = capsys.readouterr().out
    assert 'examples:\n  one\n  two\n' in text and '--debug' in text
