# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Every notebook runs from top to bottom."""

import ast
import json
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from mmaselect.report.plot import figure_pixels

NOTEBOOKS = sorted((Path(__file__).resolve().parents[2] / 'notebooks').glob('*.ipynb'))


def run_cell(source, names):
    """Run a cell as a kernel does; what its last line gives, if that is an expression."""
    lines = [line for line in source.splitlines() if not line.startswith('%')]
    tree = ast.parse('\n'.join(lines))
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, 'cell', 'exec'), names)
    return (
        None if last is None else eval(compile(ast.Expression(last.value), 'cell', 'eval'), names)
    )


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_runs(path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    cells = [c for c in json.loads(path.read_text())['cells'] if c['cell_type'] == 'code']
    assert cells and not any(cell['outputs'] for cell in cells), 'clear the outputs'
    names = {'__name__': '__main__'}
    given = [run_cell(''.join(cell['source']), names) for cell in cells]
    figures = [value for value in given if isinstance(value, Figure)]
    assert len(figures) == 3
    assert all(figure_pixels(figure).std() > 10 for figure in figures)
    assert (tmp_path / 'look.html').is_file()
    assert f'timestep {names["result"].timestep}' in capsys.readouterr().out
