# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Several (block, feature) of one pass, picked together: ``top``."""

import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mmaselect import FeatureExtractor, select
from mmaselect.apis import load_features, save_features
from mmaselect.apis.sklearn import DiTFeatures
from mmaselect.cli import main
from mmaselect.diffusion import FrozenDiT
from mmaselect.report import selection_page
from mmaselect.selection import CalibrationSet, ImageFolder, SelectionResult, Sweep
from mmaselect.selection.criteria import InstanceSensitivity
from mmaselect.selection.scoring import score_step, start_meters
from mmaselect.selection.stages import Stages

OPTIONS = dict(timesteps=[0, 300, 600], image_size=32, num_images=20, others=())


def make_sweep(folder, photos, top=3, **options):
    dit = FrozenDiT.from_pretrained(folder, blocks='auto', feature='auto')
    images = CalibrationSet(ImageFolder(photos), 32, num_images=20)
    return Sweep(dit, images, {**OPTIONS, 'top': top, **options})


@pytest.fixture(scope='module')
def three(tiny_dit, photos):
    return make_sweep(tiny_dit, photos).run(progress=False)


def test_each_is_the_one_that_adds_most(tiny_dit, photos, three):
    """By the criterion itself, on descriptors that are concatenated before it sees them."""
    alone = make_sweep(tiny_dit, photos, top=1).run(progress=False)
    assert three.cells[0] == alone.cells[0] and three.timestep == alone.timestep
    assert three.model_evaluations == alone.model_evaluations + 2 * three.num_images
    assert alone.joined == [] and not alone.is_joined
    sweep = make_sweep(tiny_dit, photos)
    stages = Stages(sweep.dit, sweep.calibration, sweep.options, sweep.grid, sweep.round_ends)
    positions = sweep.calibration.order[: three.num_images]
    meters = start_meters(stages.criteria, sweep.dit.keys, torch.device('cpu'))
    batch = stages.encode(sweep.calibration.batch(positions))
    score_step(sweep.dit, batch, three.timestep, meters)
    rows = {
        tap: meter.descriptors(sweep.dit.channels(tap))[:, :, 0].double()
        for (tap, _), meter in meters.items()
    }

    def joined(taps):
        meter = InstanceSensitivity()
        parts = [rows[tap] - rows[tap].mean((0, 1)) for tap in taps]
        whole = torch.cat([part / part.square().mean().sqrt() for part in parts], 2)
        meter.update(whole[:, 0, :, None, None], whole[:, 1, :, None, None])
        return float(meter.compute()['score'])

    chosen = [three.cells[0]]
    for place in (1, 2):
        scores = {tap: joined([*chosen, tap]) for tap in rows if tap not in chosen}
        chosen.append(max(scores, key=scores.get))
        assert three.cells[place] == chosen[-1]
        assert three.joined[place] == pytest.approx(scores[chosen[-1]], rel=1e-4)


def test_batches_make_no_difference(tiny_dit, photos, three):
    small = make_sweep(tiny_dit, photos, batch_size=3).run(progress=False)
    assert small.cells == three.cells and small.joined == pytest.approx(three.joined, rel=1e-4)


def _rank(rank, folder, photos, out):
    import torch.distributed as dist

    dist.init_process_group('gloo', init_method=f'file://{out}/store', rank=rank, world_size=2)
    result = make_sweep(folder, photos).run(progress=False)
    (Path(out) / f'rank{rank}.json').write_text(json.dumps(result.to_dict(), default=str))
    dist.destroy_process_group()


def test_two_ranks_pick_what_one_picks(tiny_dit, photos, three, tmp_path):
    context = torch.multiprocessing.get_context('spawn')
    ranks = [
        context.Process(target=_rank, args=(rank, tiny_dit, photos, str(tmp_path)))
        for rank in range(2)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(300)
    one, two = (json.loads((tmp_path / f'rank{rank}.json').read_text()) for rank in range(2))
    assert one == two
    result = SelectionResult.from_dict(one)
    assert result.cells == three.cells and result.timestep == three.timestep
    assert result.model_evaluations == three.model_evaluations
    assert result.joined == pytest.approx(three.joined, rel=1e-5)


@pytest.mark.parametrize(
    ('blocks', 'feature', 'options', 'message'),
    [
        (3, 'query', dict(top=2), "leave one place open, by blocks='auto' or, of one block, feat"),
        ('auto:2', 'query', dict(top=2), 'leave one place open'),
        ([1, 3], 'auto', dict(top=2), 'leave one place open'),
        (3, 'auto', dict(top=6), r'there are 5 \(block, feature\) to pick from'),
        ('auto', 'auto', dict(top=2, criterion='PaperHFR'), 'the criterion is PaperHFR'),
        ('auto', 'auto', dict(top=0), 'top must be'),
    ],
)
def test_what_cannot_be_picked_is_refused(tiny_dit, photos, blocks, feature, options, message):
    with pytest.raises(ValueError, match=message):
        select(tiny_dit, photos, blocks=blocks, feature=feature, **{**OPTIONS, **options})


def test_result_files_and_pages_say_it(tiny_dit, photos, three, tmp_path):
    stored = SelectionResult.load(three.save(tmp_path / 'selection.json'))
    assert stored.cells == three.cells and stored.joined == three.joined
    stored.check()
    with pytest.raises(ValueError, match='joined is'):
        replace(stored, joined=stored.joined[:2]).check()
    names = [f'{block}.{feature}' for block, feature in three.cells]
    assert stored.place_arguments == (None, names)
    config = {}
    exec(
        stored.config_snippet().replace('backbone=dict(', 'config.update(', 1), dict(config=config)
    )
    assert config['feature'] == names and 'blocks' not in config
    page = selection_page(stored)
    assert f'--feature {" ".join(names)}' in page
    assert 'read together' in page and f'{three.joined[2]:.3f}' in page


def test_the_command(tiny_dit, photos, tmp_path, capsys, three):
    command = f'select {photos} --pretrained {tiny_dit} --blocks auto --feature auto --top 3'
    command += f' --timesteps 0,300,600 --num-images 20 --image-size 32 --out {tmp_path}'
    assert main([*command.split(), '--others']) in (0, None)
    printed = capsys.readouterr().out
    result = SelectionResult.load(tmp_path / 'selection.json')
    assert result.cells == three.cells
    for block, feature in result.cells:
        assert f'{feature} of block {block}' in printed


# -- other faces ----------------------------------------------------------------------------------
@pytest.fixture
def cached(tmp_path, monkeypatch):
    monkeypatch.setenv('MMASELECT_CACHE', str(tmp_path / 'cache'))


def test_an_extractor_gives_each_and_shares_the_pick(tiny_dit, photos, cached, tmp_path, three):
    how = {**OPTIONS, 'top': 3}
    extract = FeatureExtractor(
        tiny_dit, 'auto', blocks='auto', feature='auto', calibration=photos, selection=how
    )
    assert list(extract.keys) == extract.selection_result.cells == three.cells
    image = torch.rand(3, 32, 32) * 2 - 1
    maps = extract(image)
    extract.save_pretrained(tmp_path / 'pick')
    again = FeatureExtractor.from_pretrained(tmp_path / 'pick')
    assert list(again.keys) == three.cells and again.timestep == extract.timestep
    assert all(torch.equal(one, maps[key]) for key, one in again(image).items())
    card = (tmp_path / 'pick' / 'README.md').read_text()
    assert '.'.join(map(str, three.cells[1])) in card


def test_features_in_files(tiny_dit, photos, cached, tmp_path, three):
    how = {**OPTIONS, 'top': 3}
    given = dict(blocks='auto', feature='auto', selection=how, image_size=32, progress=False)
    stored = save_features(photos, tmp_path / 'out', tiny_dit, store='fp16', **given)
    assert list(stored.keys) == three.cells
    assert list(load_features(tmp_path / 'out').keys) == three.cells
    extract = FeatureExtractor(
        tiny_dit, stored.timestep, feature=[f'{b}.{f}' for b, f in three.cells], image_size=32
    )
    first = sorted(Path(photos).iterdir())[0]
    (found,) = (stored[n] for n, path in enumerate(stored.paths) if Path(path).name == first.name)
    for key, one in extract(first).items():
        assert torch.allclose(found[key].float(), one[0], atol=1e-2, rtol=1e-2)


def test_scikit_learn_keeps_the_pick_in_pickles(tiny_dit, photos, cached):
    images = sorted(str(path) for path in Path(photos).iterdir())
    how = {**OPTIONS, 'top': 2}
    model = DiTFeatures(tiny_dit, 'auto', blocks='auto', feature='auto', selection=how)
    vectors = model.fit(images).transform(images[:3])
    again = pickle.loads(pickle.dumps(model))
    assert (again.transform(images[:3]) == vectors).all()
    assert len(again.selection_.cells) == 2
