# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Files that are made from others are up to date, and the tool that makes them notices if not."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / 'tools' / 'dev' / 'write_generated.py'


@pytest.fixture
def tool():
    spec = importlib.util.spec_from_file_location('write_generated', TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_up_to_date(tool):
    assert list(tool.outdated()) == [], 'run: python tools/dev/write_generated.py'


def test_notices_an_edit_and_mends_it(tool, tmp_path, monkeypatch, capsys):
    (tmp_path / 'docs').mkdir()
    stale = tmp_path / 'docs' / 'families.md'
    text = (ROOT / 'docs' / 'families.md').read_text(encoding='utf-8')
    stale.write_text(text.replace('| 1152 | 28 |', '| 1153 | 28 |', 1), encoding='utf-8')
    monkeypatch.setattr(tool, 'ROOT', tmp_path)
    monkeypatch.setattr(tool, 'GENERATED', {'docs/families.md': tool.GENERATED['docs/families.md']})
    monkeypatch.setattr('sys.argv', ['write_generated.py', '--check'])
    with pytest.raises(SystemExit) as leave:
        tool.main()
    assert leave.value.code == 1
    assert capsys.readouterr().out == 'docs/families.md is out of date\n'
    monkeypatch.setattr('sys.argv', ['write_generated.py'])
    with pytest.raises(SystemExit) as leave:
        tool.main()
    assert leave.value.code == 0 and stale.read_text(encoding='utf-8') == text


def test_a_config_that_names_the_unknown(tool, tmp_path, monkeypatch):
    folder = tmp_path / 'configs' / 'classification'
    folder.mkdir(parents=True)
    (folder / 'mine.py').write_text(
        "data_root = 'data/mine'\n"
        "model = dict(backbone=dict(pretrained='facebook/DiT-XL-2-256'), "
        "head=dict(type='LinearClsHead'))\n"
    )
    monkeypatch.setattr(tool, 'ROOT', tmp_path)
    with pytest.raises(KeyError, match=r"mine\.py names 'data/mine', which"):
        tool.metafile('classification')
