# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Every notebook runs from top to bottom, and the outputs in its file are what it gives."""

import ast
import base64
import io
import json
import re
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image

from mmaselect.logs import logger
from mmaselect.report.plot import figure_pixels
from mmaselect.selection import SelectionResult

NOTEBOOKS = sorted((Path(__file__).resolve().parents[2] / 'notebooks').glob('*.ipynb'))
MOST_BYTES = 600_000
ABSOLUTE_PATH = re.compile(r'(?<![\w.:/])/\w+/|\b[A-Z]:\\')


def run_cell(source, names):
    """Run a cell as a kernel does; what its last line gives, if that is an expression."""
    lines = [line for line in source.splitlines() if not line.lstrip().startswith('%')]
    tree = ast.parse('\n'.join(lines))
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, 'cell', 'exec'), names)
    return (
        None if last is None else eval(compile(ast.Expression(last.value), 'cell', 'eval'), names)
    )


def code_cells(path):
    return [cell for cell in json.loads(path.read_text())['cells'] if cell['cell_type'] == 'code']


def saved(cell):
    """What a cell printed and gave when the file was saved: text, and data by type."""
    printed, data = '', {}
    for output in cell['outputs']:
        assert output['output_type'] in ('stream', 'execute_result'), output
        if output['output_type'] == 'stream':
            assert output['name'] == 'stdout', output
            printed += ''.join(output['text'])
        else:
            data = {kind: ''.join(content) for kind, content in output['data'].items()}
    return printed, data


def split_shares(text):
    """A text without its percentages, and these: other processors round otherwise."""
    pattern = r'([\d.]+)%'
    return re.sub(pattern, '%', text), [float(share) for share in re.findall(pattern, text)]


@pytest.fixture
def own_level():
    """The package's messages are shown again after a notebook that hid them."""
    level = logger.level
    yield
    logger.setLevel(level)


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_those_of_this_code(path, tmp_path, monkeypatch, capsys, own_level):
    monkeypatch.chdir(tmp_path)
    names = {'__name__': '__main__'}
    figures = []
    for cell in code_cells(path):
        printed, data = saved(cell)
        value = run_cell(''.join(cell['source']), names)
        words, shares = split_shares(printed)
        words_now, shares_now = split_shares(capsys.readouterr().out.removeprefix('\n'))
        assert words_now.strip() == words.strip(), 'jupyter execute --inplace, and look at it'
        assert shares_now == pytest.approx(shares, abs=2)
        if isinstance(value, Figure | Image.Image):
            picture = Image.open(io.BytesIO(base64.b64decode(data['image/png'])))
            darkest, lightest = picture.convert('L').getextrema()
            assert darkest < 60 and lightest > 200
        elif value is not None:
            assert data['text/plain'] == repr(value)
        if isinstance(value, Figure):
            figures.append(value)
        if isinstance(value, SelectionResult):
            now = value._repr_html_()
            assert data['text/html'].partition('<svg')[0] == now.partition('<svg')[0]
    assert len(figures) == 3
    assert all(figure_pixels(figure).std() > 10 for figure in figures)
    assert (tmp_path / 'look.html').is_file()
    assert names['picked'] > names['usual'] + 0.1, 'the text says that the pick is worth it'


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_small_and_of_no_machine(path):
    assert path.stat().st_size < MOST_BYTES
    cells = code_cells(path)
    assert sum(bool(cell['outputs']) for cell in cells) >= 6, 'save it with its outputs'
    for number, cell in enumerate(cells, start=1):
        printed, data = saved(cell)
        assert cell['execution_count'] == number, 'run it from top to bottom'
        for text in (printed, data.get('text/plain', ''), data.get('text/html', '')):
            assert not ABSOLUTE_PATH.search(text), text
            assert 'arning' not in text, text
