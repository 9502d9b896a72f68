# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""``make demo``: three trainings, their numbers, and a page."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def load_demo():
    spec = importlib.util.spec_from_file_location('demo', ROOT / 'tools' / 'demo.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SHORT = (
    *('train_cfg.max_iters=2', 'train_cfg.val_interval=2', 'param_scheduler.total_steps=2'),
    *('default_hooks.checkpoint.interval=2', 'train_dataloader.dataset.num_canvases=8'),
    *('val_dataloader.dataset.num_canvases=4', 'model.backbone.calibration.num_canvases=16'),
    *('model.backbone.selection.timesteps=0,200', 'model.backbone.selection.num_images=16'),
)


def test_demo(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('MMASELECT_CACHE', str(tmp_path / 'cache'))
    load_demo().main(['--work-dir', str(tmp_path / 'demo'), '--cfg-options', *SHORT])
    shown = capsys.readouterr().out
    assert 'middle block, query, t = 0' in shown and 'picked: block' in shown
    assert 'picked: 3 features of one pass' in shown and shown.count('mIoU') == 6
    page = (tmp_path / 'demo/demo.html').read_text()
    assert page.count('<img src="data:image') == 4 * 5
    assert (tmp_path / 'demo/picked/selection.html').is_file()


def test_a_training_that_fails_names_its_log(tmp_path):
    with pytest.raises(RuntimeError, match=r'console\.log says why: .*no config file'):
        load_demo().main(['--work-dir', str(tmp_path), '--config', str(tmp_path / 'missing.py')])
