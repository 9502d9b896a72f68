# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""The timestep in a run of MMEngine's Runner: where a checkpoint comes, it decides."""

import io
import itertools
import json
import logging
import shutil

import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.runner import Runner
from toy_segmentor import Segmentor

from mmaselect.models import ASelecTDiT
from mmaselect.selection.sweep import Sweep

GRID = [0, 200, 600]
_names = (f'run{number}' for number in itertools.count())


def make_backbone(folder, photos, grid=GRID, **options):
    selection = dict(timesteps=grid, num_images=6, image_size=32, batch_size=3)
    return ASelecTDiT(folder, blocks=[2], calibration=photos, selection=selection, **options)


def train(backbone, work_dir, iters=1, hook=True, **options):
    """Train as tools/train.py does; returns the runner and what it logged."""
    data = [(torch.rand(3, 32, 32), torch.randint(0, 2, (8, 8))) for _ in range(2)]
    runner = Runner(
        model=Segmentor(backbone),
        work_dir=str(work_dir),
        train_dataloader=torch.utils.data.DataLoader(data, batch_size=2),
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=iters),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=1, by_epoch=False)),
        custom_hooks=[dict(type='mmaselect.SelectionHook')] if hook else [],
        default_scope='mmengine',
        experiment_name=next(_names),
        cfg=Config(dict(work_dir=str(work_dir), **options)),
        **options,
    )
    heard = io.StringIO()
    handler = logging.StreamHandler(heard)
    MMLogger.get_current_instance().addHandler(handler)
    runner.train()
    MMLogger.get_current_instance().removeHandler(handler)
    return runner, heard.getvalue()


def written(folder):
    return json.loads((folder / 'selection.json').read_text())['timestep']


@pytest.fixture
def first(tiny_dit, photos, tmp_path):
    """A run that has selected, and what it found."""
    runner, _ = train(make_backbone(tiny_dit, photos), tmp_path / 'run')
    pick = runner.model.backbone.timestep
    assert written(tmp_path / 'run') == pick
    return tmp_path / 'run', pick


@pytest.fixture
def never_selects(monkeypatch):
    def selected(*args, **kwargs):
        raise AssertionError('selected')

    monkeypatch.setattr(Sweep, 'run', selected)


@pytest.mark.parametrize('hook', [True, False])
@pytest.mark.parametrize('case', ['cache emptied', 'images gone', 'another grid'])
def test_a_resumed_run_takes_the_pick_and_never_selects(
    tiny_dit, photos, tmp_path, first, never_selects, case, hook
):
    folder, pick = first
    shutil.rmtree(tmp_path / 'cache')
    where = str(tmp_path / 'gone') if case == 'images gone' else photos
    grid = [700, 800] if case == 'another grid' else GRID
    backbone = make_backbone(tiny_dit, where, grid)
    runner, log = train(backbone, folder, iters=2, hook=hook, resume=True)
    assert runner.iter == 2
    assert backbone.timestep == pick == written(folder)
    assert f'timestep {pick} comes from the checkpoint, nothing is selected' in log
    assert "timestep=dict(source='config')" in log


def pick_elsewhere(folder, path, timestep):
    """A checkpoint of a run whose pick was another, with its result."""
    state = torch.load(path, weights_only=False)
    state['state_dict']['backbone.picked_timestep'] = torch.tensor(timestep)
    result = state['mmaselect_selection']['backbone']
    result['timestep'] = timestep
    for point in result['curve']:
        if point['timestep'] == timestep:
            point['score'] = 99.0
            result['noise_level'], result['log_snr'] = point['noise_level'], point['log_snr']
    result['per_tap'] = []
    torch.save(state, folder / 'elsewhere.pth')
    return str(folder / 'elsewhere.pth')


@pytest.mark.parametrize('hook', [True, False])
def test_a_model_tuned_elsewhere_keeps_its_pick(
    tiny_dit, photos, tmp_path, first, never_selects, hook
):
    folder, pick = first
    other = next(step for step in GRID if step != pick)
    path = pick_elsewhere(tmp_path, folder / 'iter_1.pth', other)
    backbone = make_backbone(tiny_dit, photos)
    new = tmp_path / 'new'
    _, log = train(backbone, new, hook=hook, load_from=path)
    assert backbone.timestep == other
    assert f'timestep {other} comes from the checkpoint' in log
    if hook:
        assert written(new) == other
        assert (new / 'selection.png').is_file()
        saved = torch.load(new / 'iter_1.pth', weights_only=False)
        assert saved['mmaselect_selection']['backbone']['timestep'] == other
    else:
        assert not (new / 'selection.json').exists()


def test_a_file_of_another_timestep_does_not_stay(tiny_dit, photos, tmp_path, first, never_selects):
    folder, pick = first
    other = next(step for step in GRID if step != pick)
    path = pick_elsewhere(tmp_path, folder / 'iter_1.pth', other)
    state = torch.load(path, weights_only=False)
    del state['mmaselect_selection']  # as written before checkpoints carried it
    torch.save(state, path)
    _, log = train(make_backbone(tiny_dit, photos), folder, load_from=path)
    assert not (folder / 'selection.json').exists() and not (folder / 'selection.png').exists()
    aside = folder / 'selection_of_another_timestep.json'
    assert json.loads(aside.read_text())['timestep'] == pick
    assert f'reads at timestep {other}, but' in log and str(aside) in log


def test_the_config_can_be_chosen(tiny_dit, photos, tmp_path, first):
    folder, pick = first
    other = next(step for step in GRID if step != pick)
    path = pick_elsewhere(tmp_path, folder / 'iter_1.pth', other)
    backbone = make_backbone(tiny_dit, photos, timestep=dict(source='config'))
    _, log = train(backbone, tmp_path / 'new', load_from=path)
    assert backbone.timestep == pick == written(tmp_path / 'new')
    assert f"the config's timestep {pick} (selected) is in use" in log
    given = make_backbone(tiny_dit, photos, timestep=dict(steps=123, source='config'))
    _, log = train(given, tmp_path / 'given', load_from=path)
    assert given.timestep == 123
    assert f"the config's timestep 123 (given) is in use, and not the checkpoint's {other}" in log
    given = make_backbone(tiny_dit, photos, timestep=123)
    _, log = train(given, tmp_path / 'given', load_from=path)
    assert given.timestep == other
    assert f'the checkpoint was trained at timestep {other}, which is in use now' in log


@pytest.mark.parametrize('hook', [True, False])
def test_a_checkpoint_without_a_pick_leaves_it_to_the_config(tiny_dit, photos, tmp_path, hook):
    torch.save(dict(state_dict={}, meta={}), tmp_path / 'other.pth')
    backbone = make_backbone(tiny_dit, photos)
    _, log = train(backbone, tmp_path / 'run', hook=hook, load_from=str(tmp_path / 'other.pth'))
    assert backbone.timestep == backbone.selection_result.timestep in GRID
    assert 'no checkpoint brought a timestep' in log
    if hook:
        assert written(tmp_path / 'run') == backbone.timestep


def test_init_weights_alone_selects_at_once(tiny_dit, photos, first):
    backbone = make_backbone(tiny_dit, photos)
    backbone.init_weights()
    assert backbone.selection_result is not None


def test_files_that_cannot_be_written_end_no_run(tiny_dit, photos, tmp_path):
    folder = tmp_path / 'run'
    for name in ('selection.json', 'selection.png'):
        (folder / name / 'in the way').mkdir(parents=True)
    runner, log = train(make_backbone(tiny_dit, photos), folder)
    assert runner.iter == 1
    for name in ('selection.json', 'selection.png'):
        assert f'{folder / name} cannot be written' in log
    assert not list(folder.glob('.selection*'))
