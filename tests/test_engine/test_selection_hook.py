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
from mmengine.model import Sequential
from mmengine.runner import Runner
from mmengine.visualization import Visualizer
from PIL import Image
from toy_segmentor import Segmentor

from mmaselect.engine.hooks.selection_hook import backbones_of
from mmaselect.launch.summary import summarize
from mmaselect.leaderboard.runs import selection_facts
from mmaselect.models import ASelecTDiT
from mmaselect.openmmlab.checkpoints import check_checkpoint_file, mmengine_globals
from mmaselect.report.plot import figure_pixels, selection_figure
from mmaselect.report.work_dir import find_selections
from mmaselect.selection import SelectionResult
from mmaselect.selection.sweep import Sweep
from mmaselect.untrusted import load_tensors, only_weights

GRID = [0, 200, 600]
_names = (f'run{number}' for number in itertools.count())


def make_backbone(folder, photos, grid=GRID, **options):
    selection = dict(timesteps=grid, num_images=6, image_size=32, batch_size=3)
    return ASelecTDiT(folder, blocks=[2], calibration=photos, selection=selection, **options)


def train(backbone, work_dir, iters=1, hook=True, **options):
    """Train as tools/train.py does; returns the runner and what it logged."""
    data = [(torch.rand(3, 32, 32), torch.randint(0, 2, (8, 8))) for _ in range(2)]
    runner = Runner(
        model=backbone if isinstance(backbone, Segmentor) else Segmentor(backbone),
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
    assert f'reads at timestep {other}' in log and str(aside) in log


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


def test_trouble_with_old_files_and_the_visualizer_ends_no_run(
    tiny_dit, photos, tmp_path, monkeypatch
):
    folder = tmp_path / 'run'
    for name in ('selection', 'selection_old'):
        (folder / f'{name}_of_another_timestep.json' / 'in the way').mkdir(parents=True)
        (folder / f'{name}.json').write_text('{}')

    def no_room(*args, **kwargs):
        raise OSError('no room for pictures')

    monkeypatch.setattr(Visualizer, 'add_image', no_room)
    runner, log = train(make_backbone(tiny_dit, photos), folder)
    assert runner.iter == 1 and written(folder) == runner.model.backbone.timestep
    assert f'{folder / "selection_old.json"} cannot be written' in log
    assert f'{folder} cannot be written' in log and 'no room for pictures' in log
    assert log.count('cannot be written') == 3


def test_a_checkpoint_holds_plain_values_alone(first):
    """Else ``tools/test.py`` refuses what ``tools/train.py`` wrote."""
    folder, pick = first
    with only_weights(), torch.serialization.safe_globals(mmengine_globals()):
        check_checkpoint_file(folder / 'iter_1.pth')
        carried = load_tensors(folder / 'iter_1.pth')['mmaselect_selection']
    assert carried['backbone']['timestep'] == pick
    assert json.loads(json.dumps(carried)) == carried


class TwoBackbones(Segmentor):
    """Reads the mean of two models, of which one is deeper in it."""

    def __init__(self, one, other):
        super().__init__(one)
        self.auxiliary = Sequential(other)

    def forward(self, inputs, labels=None, mode='tensor'):
        maps = self.backbone(inputs)[0] + self.auxiliary(inputs)[0]
        return dict(loss=torch.nn.functional.cross_entropy(self.head(maps), labels))


def two(folder, photos):
    return TwoBackbones(
        make_backbone(folder, photos, grid=[0, 200]), make_backbone(folder, photos, grid=[600, 700])
    )


def test_two_backbones_have_files_of_their_own(tiny_dit, photos, tmp_path, monkeypatch):
    folder = tmp_path / 'run'
    # Of a run with one backbone, in the same place.
    train(make_backbone(tiny_dit, photos), folder)
    runner, log = train(two(tiny_dit, photos), folder)
    picks = {name: b.timestep for name, b in backbones_of(runner).items()}
    assert set(picks) == {'backbone', 'auxiliary.0'} and len(set(picks.values())) == 2
    found = find_selections(folder)
    assert set(found) == set(picks)
    for name, path in found.items():
        assert path == folder / f'selection_{name}.json'
        assert SelectionResult.load(path).timestep == picks[name]
        assert (folder / f'selection_{name}.png').is_file()
        assert f'selection_{name}.html' in log
    assert (folder / 'selection_of_another_timestep.json').is_file()
    assert 'of a backbone that this model does not have' in log

    facts = selection_facts(folder)
    for name, timestep in picks.items():
        assert f'{name}: {timestep}' in facts['pick']
        assert f'{name}: picked timestep: {timestep} (' in summarize(runner)
    assert facts['page'].split(', ') == [str(p.with_suffix('.html')) for p in found.values()]
    results = [SelectionResult.load(path) for path in found.values()]
    assert facts['selection_evaluations'] == sum(r.model_evaluations for r in results)

    # Resumed, each finds its own, and no file is set aside.
    monkeypatch.setattr(Sweep, 'run', None)
    runner, log = train(two(tiny_dit, photos), folder, iters=2, resume=True)
    assert {name: b.timestep for name, b in backbones_of(runner).items()} == picks
    assert set(find_selections(folder)) == set(picks) and ' is now ' not in log


def test_the_visualizer_has_the_curve_and_the_picture(tiny_dit, photos, tmp_path):
    runner, _ = train(make_backbone(tiny_dit, photos), tmp_path / 'run')
    curve = runner.model.backbone.selection_result.curve
    (scalars,) = (tmp_path / 'run').glob('*/vis_data/scalars.json')
    lines = [json.loads(line) for line in scalars.read_text().splitlines()]
    name = f'selection/{curve.criterion}'
    sent = {line['step']: line[name] for line in lines if name in line}
    assert sent == pytest.approx({point.timestep: point.score for point in curve.points})
    (picture,) = (tmp_path / 'run').glob('*/vis_data/vis_image/selection*.png')
    assert (
        Image.open(picture).size
        == figure_pixels(selection_figure(runner.model.backbone.selection_result)).shape[1::-1]
    )
