# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
import importlib.util
import json
import linecache
import os
import pathlib
import shutil
import sys
import time
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from stopping import stop_after

from mmaselect.diffusion import FrozenDiT, build_process, draw_noise
from mmaselect.registry import CRITERIA
from mmaselect.report.plot import save_selection
from mmaselect.selection import (
    CalibrationSet,
    ImageArrays,
    ImageFolder,
    SelectionCache,
    SelectionResult,
    Sweep,
)
from mmaselect.selection.criteria import PerImageCriterion, cross_spectrum_hfr, fisher_score
from mmaselect.selection.grid import TimestepGrid
from mmaselect.selection.result import settings_key
from mmaselect.selection.scoring import noise_seed

GRID = [0, 100, 300, 600, 900]


def make_sweep(folder, photos, num_images=10, blocks=(1, 3), **options):
    dit = FrozenDiT.from_pretrained(folder, blocks=list(blocks))
    images = CalibrationSet(ImageFolder(photos), 32, num_images=num_images)
    cache = options.pop('cache', None)
    return Sweep(dit, images, {**dict(timesteps=GRID, batch_size=4), **options}, cache)


def test_scores_are_those_of_a_plain_loop(tiny_latent_dit, photos):
    sweep = make_sweep(tiny_latent_dit, photos, criterion='CrossSpectrumHFR')
    result = sweep.run(progress=False)
    dit, images = sweep.dit, sweep.calibration
    for point in result.curve.points:
        scores = []
        for index in range(10):
            pixels = torch.from_numpy(images.image(index)).permute(2, 0, 1)[None] / 127.5 - 1
            latent = dit.encode(pixels)
            draws = [
                dit.features(
                    latent, point.timestep,
                    draw_noise(tuple(latent.shape[1:]), [noise_seed(0, index, draw)]),
                )
                for draw in range(2)
            ]  # fmt: skip
            scores.append(
                [cross_spectrum_hfr(draws[0][key], draws[1][key]).item() for key in dit.keys]
            )
        assert point.score == pytest.approx(np.mean(scores), abs=1e-6)
        assert point.noise_level == pytest.approx(dit.process.at(point.timestep).sigma)
    best = max(result.curve.points, key=lambda point: point.score)
    assert result.timestep == best.timestep
    assert [curve.block for curve in result.per_tap] == [1, 3]


def test_it_runs_exactly_the_passes_that_are_needed(tiny_latent_dit, photos):
    sweep = make_sweep(tiny_latent_dit, photos)
    counted = dict(encoded=0, passes=0)
    sweep.dit.codec.register_forward_pre_hook(
        lambda module, args: counted.update(encoded=counted['encoded'] + len(args[0]))
    )
    sweep.dit.transformer.register_forward_pre_hook(
        lambda module, args: counted.update(passes=counted['passes'] + len(args[0]))
    )
    result = sweep.run(progress=False)
    # Each image and each of its two views, once; all of them at each timestep.
    assert counted == dict(encoded=30, passes=10 * len(GRID) * 3)
    assert result.model_evaluations == 10 * len(GRID) * 3


def test_views_alone_where_no_criterion_reads_the_images(tiny_dit, photos):
    result = make_sweep(tiny_dit, photos, criterion='InstanceRetrieval', others=[]).run(
        progress=False
    )
    assert result.model_evaluations == 10 * len(GRID) * 2
    assert result.settings['views'] == dict(
        scale=[0.6, 1.0], flip=False, noise='own', pixels='disjoint'
    )


def test_one_draw_where_no_criterion_wants_two(tiny_dit, photos):
    sweep = make_sweep(tiny_dit, photos, criterion=dict(type='HighFrequencyRatio'), others=[])
    assert sweep.run(progress=False).model_evaluations == 10 * len(GRID)


def test_batch_size_does_not_matter(tiny_dit, photos):
    curves = []
    for size in (1, 3, 10):
        sweep = make_sweep(tiny_dit, photos, batch_size=size)
        curves.append(sweep.run(progress=False).curve.scores)
    assert np.allclose(curves[0], curves[1], atol=1e-6)
    assert np.allclose(curves[0], curves[2], atol=1e-6)


def test_criteria_beside_the_deciding_one(tiny_dit, photos):
    result = make_sweep(
        tiny_dit,
        photos,
        others=[dict(type='HighFrequencyRatio'), dict(type='HighFrequencyRatio', cutoff=0.25)],
    ).run(progress=False)
    assert list(result.others) == ['HighFrequencyRatio', 'HighFrequencyRatio-2']
    alone = make_sweep(
        tiny_dit, photos, criterion=dict(type='HighFrequencyRatio', cutoff=0.25), others=[]
    ).run(progress=False)
    assert alone.curve.scores == pytest.approx(result.others['HighFrequencyRatio-2'].scores)


def test_labels_for_those_who_ask(tiny_dit):
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (32, 32, 3), dtype=np.uint8) for _ in range(12)]
    labels = [i % 3 for i in range(12)]
    fisher = dict(type='FisherScore', num_classes=3)
    dit = FrozenDiT.from_pretrained(tiny_dit, blocks=[2])
    labeled = CalibrationSet(ImageArrays(images, labels), 32)
    result = Sweep(dit, labeled, dict(timesteps=[50], criterion=fisher, others=[])).run(
        progress=False
    )
    latent = torch.cat([batch.images for batch in labeled.batches(12)])
    noise = draw_noise((3, 32, 32), [noise_seed(0, i, 0) for i in range(12)])
    feature = dit.features(latent, 50, noise)[2, 'query']
    chosen = torch.tensor([labels[i] for i in labeled.chosen])
    expected = fisher_score(feature.mean((2, 3)), chosen, 3)
    assert result.curve.scores == pytest.approx([expected.item()], rel=1e-4)
    with pytest.raises(ValueError, match='FisherScore needs labels'):
        Sweep(dit, CalibrationSet(ImageArrays(images), 32), dict(criterion=fisher))


@CRITERIA.register_module()
class MeanOfTheMap(PerImageCriterion):
    """A user's own criterion."""

    def per_image(self, feature):
        return feature.float().mean((1, 2, 3))


def test_a_criterion_of_the_users_own(tiny_dit, photos):
    sweep = make_sweep(tiny_dit, photos, criterion=dict(type='MeanOfTheMap'), blocks=[2])
    result = sweep.run(progress=False)
    (batch,) = sweep.calibration.batches(10)
    noise = draw_noise((3, 32, 32), [noise_seed(0, index, 0) for index in range(10)])
    maps = sweep.dit.features(batch.images, 300, noise)[2, 'query']
    assert result.criterion == 'MeanOfTheMap'
    assert result.curve.points[2].score == pytest.approx(maps.mean().item(), rel=1e-4)


def poison(dit, timesteps):
    """Make the true model overflow at some timesteps, as half precision does."""
    features = dit.features

    def poisoned(latent, timestep, noise):
        maps = features(latent, timestep, noise)
        if timestep in timesteps:
            maps = {key: value * float('inf') for key, value in maps.items()}
        return maps

    dit.features = poisoned


def test_non_finite_features_are_reported_and_never_picked(tiny_dit, photos):
    sweep = make_sweep(tiny_dit, photos)
    favourite = sweep.run(progress=False).timestep
    poison(sweep.dit, [favourite])
    result = sweep.run(progress=False)
    assert result.timestep != favourite
    assert (
        f'not finite (NaN or infinity) in torch.float32 at timesteps [{favourite}]'
        in result.warnings[0].text
    )
    assert result.curve.points[GRID.index(favourite)].score is None
    poison(sweep.dit, GRID)
    with pytest.raises(RuntimeError, match=r'no timestep gave finite features in torch\.float32'):
        sweep.run(progress=False)


def test_bad_arguments(tiny_dit, photos):
    with pytest.raises(ValueError, match=r"'NoSuch' is not known: choose from.*CrossSpectrumHFR"):
        make_sweep(tiny_dit, photos, criterion=dict(type='NoSuch'))
    dit = FrozenDiT.from_pretrained(tiny_dit)
    images = CalibrationSet(ImageFolder(photos), 32)
    with pytest.raises(ValueError, match=r'0 \(clean\) to 999'):
        Sweep(dit, images, dict(timesteps='0:2000:100'))
    with pytest.raises(ValueError, match='batch_size must be at least 1'):
        Sweep(dit, images, dict(batch_size=0))


# -- results that are kept -----------------------------------------------------------------------
def test_result_round_trip_and_documented_keys(tiny_dit, photos, tmp_path):
    result = make_sweep(tiny_dit, photos).run(progress=False)
    path, picture = save_selection(result, tmp_path)
    assert (path.name, picture.name) == ('selection.json', 'selection.png')
    data = json.loads(path.read_text())
    for key in ('timestep', 'noise_level', 'criterion', 'feature', 'blocks', 'num_images',
                'seconds', 'model_evaluations', 'warnings', 'others', 'curve'):  # fmt: skip
        assert key in data
    assert {'timestep', 'noise_level', 'score', 'std'} <= set(data['curve'][0])
    assert data['others']['PaperHFR'].keys() == {'timestep', 'curve'}
    assert SelectionResult.load(path).to_dict() == result.to_dict()
    assert picture.stat().st_size > 10_000
    assert sorted(p.name for p in tmp_path.glob('*selection*')) == [
        'selection.json', 'selection.png',
    ]  # fmt: skip


def test_stored_result_is_found_and_costs_no_pass(tiny_dit, photos, tmp_path):
    cache = SelectionCache(tmp_path)
    first = make_sweep(tiny_dit, photos, cache=cache).run(progress=False)
    second = make_sweep(tiny_dit, photos, cache=cache)
    second.dit.features = None  # calling it would raise
    assert second.run(progress=False).to_dict() == first.to_dict()


@pytest.mark.parametrize(
    'change',
    ['weights', 'images', 'grid', 'block', 'criterion', 'seed', 'number', 'dtype', 'version'],
)
def test_stored_result_is_not_trusted_if_anything_that_matters_changed(
    tiny_dit, photos, tmp_path, change, monkeypatch
):
    cache = SelectionCache(tmp_path)
    make_sweep(tiny_dit, photos, cache=cache).run(progress=False)
    options = dict(cache=cache)
    if change == 'block':
        options['blocks'] = (1, 4)
    elif change == 'criterion':
        options['criterion'] = dict(type='CrossSpectrumHFR', cutoff=0.25)
    elif change == 'seed':
        options['seed'] = 1
    elif change == 'number':
        options['num_images'] = 9
    sweep = make_sweep(tiny_dit, photos, **options)
    if change == 'weights':
        sweep.dit.transformer.transformer_blocks[2].attn1.to_q.bias.data += 1e-3
    elif change == 'images':
        load = sweep.calibration.source.load
        sweep.calibration.source.load = lambda i: load(i) // 2
    elif change == 'grid':
        sweep.grid = TimestepGrid(tuple(GRID[:-1]))
    elif change == 'dtype':
        sweep.dit.to(torch.bfloat16)
    elif change == 'version':
        monkeypatch.setattr('mmaselect.selection.identity.SELECTION_VERSION', 999)
    stored = set(os.listdir(tmp_path))
    sweep.run(progress=False)
    assert len(set(os.listdir(tmp_path)) - stored) == 1


def test_a_new_version_of_the_package_costs_nobody_a_sweep(tiny_dit, photos, tmp_path, monkeypatch):
    cache = SelectionCache(tmp_path)
    result = make_sweep(tiny_dit, photos, cache=cache).run(progress=False)
    monkeypatch.setattr('mmaselect.__version__', '999')
    assert make_sweep(tiny_dit, photos, cache=cache).run(progress=False) == result


@pytest.mark.parametrize(
    'change', ['one weight', 'vae', 'vae config', 'schedule', 'transformer config', 'condition',
               'torch', 'diffusers'],
)  # fmt: skip
def test_what_a_stored_result_depends_on(tiny_latent_dit, photos, change, monkeypatch):
    def key(sweep):
        return settings_key(sweep.settings())

    sweep = make_sweep(tiny_latent_dit, photos, num_images=2)
    dit, before = sweep.dit, key(sweep)
    assert key(make_sweep(tiny_latent_dit, photos, num_images=2)) == before
    if change == 'one weight':
        weight = dit.transformer.transformer_blocks[1].ff.net[0].proj.weight
        weight.data.view(-1)[1] += 1e-4  # a strided sample would not see it
    elif change == 'vae':
        dit.codec.vae.encoder.conv_in.bias.data[3] += 1e-4
    elif change == 'vae config':
        dit.codec.vae.register_to_config(scaling_factor=0.25)
    elif change == 'schedule':
        dit.process = build_process(
            {'_class_name': 'DDPMScheduler', 'beta_schedule': 'scaled_linear'}
        )
    elif change == 'transformer config':
        dit.family.config = {**dit.family.config, 'norm_eps': 1e-3}
    elif change == 'condition':
        dit = FrozenDiT.from_pretrained(tiny_latent_dit, blocks=[1, 3], condition=4)
        sweep.dit = dit
    else:
        monkeypatch.setattr(f'{change}.__version__', '999')
    assert key(sweep) != before


def test_where_a_model_lies_does_not_matter(tiny_latent_dit, photos, tmp_path):
    moved = shutil.copytree(tiny_latent_dit, tmp_path / 'elsewhere')
    keys = [
        settings_key(make_sweep(folder, photos, num_images=2).settings())
        for folder in (tiny_latent_dit, moved)
    ]
    assert keys[0] == keys[1]


CRITERION_FILE = """
from mmaselect.selection.criteria import PerImageCriterion

def scale():
    return {scale}

class Own(PerImageCriterion):
    def per_image(self, feature):
        return feature.float().mean((1, 2, 3)) * scale()
"""


def load_criterion(path, text):
    path.write_text(text)
    linecache.checkcache()
    spec = importlib.util.spec_from_file_location('own_criterion', path)
    module = importlib.util.module_from_spec(spec)
    sys.modules['own_criterion'] = module
    spec.loader.exec_module(module)
    return module.Own


def test_the_code_of_a_users_criterion_is_looked_at(tiny_dit, photos, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'own_criterion', None)
    monkeypatch.setattr(sys, 'dont_write_bytecode', True)
    cache, scores = SelectionCache(tmp_path / 'cache'), []
    for name, scale in (('a', 1), ('b', 1), ('c', -1)):
        own = load_criterion(tmp_path / f'{name}.py', CRITERION_FILE.format(scale=scale))
        sweep = make_sweep(tiny_dit, photos, criterion=dict(type=own), others=[], cache=cache)
        scores.append(sweep.run(progress=False).curve.scores)
    assert scores[0] == scores[1] == pytest.approx([-score for score in scores[2]])
    assert len(list(cache.folder.glob('*.json'))) == 2


def test_a_criterion_without_source_is_never_taken_from_the_cache(tiny_dit, photos, tmp_path):
    scope = {'__name__': 'nowhere'}
    exec(CRITERION_FILE.format(scale=1), scope)
    sweep = make_sweep(
        tiny_dit, photos, criterion=dict(type=scope['Own']), others=[],
        cache=SelectionCache(tmp_path / 'cache'),
    )  # fmt: skip
    sweep.run(progress=False)
    assert not (tmp_path / 'cache').exists()


def test_labels_are_part_of_what_a_result_depends_on(tiny_dit):
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (32, 32, 3), dtype=np.uint8) for _ in range(4)]
    dit = FrozenDiT.from_pretrained(tiny_dit, blocks=[2])
    keys = {
        settings_key(
            Sweep(
                dit, CalibrationSet(ImageArrays(images, labels), 32),
                dict(timesteps=[50], criterion=dict(type='FisherScore', num_classes=2), others=[]),
            ).settings()
        )
        for labels in ([0, 0, 1, 1], [0, 1, 0, 1])
    }  # fmt: skip
    assert len(keys) == 2


def test_a_kill_in_the_middle_leaves_no_result(tiny_dit, photos, tmp_path):
    sweep = make_sweep(tiny_dit, photos, cache=SelectionCache(tmp_path / 'cache'))
    stop_after(sweep.dit, 7)
    with pytest.raises(KeyboardInterrupt):
        sweep.run(progress=False)
    assert not list(tmp_path.rglob('*.json'))


@pytest.mark.parametrize('passes', [1, 16, 22, 44])
def test_a_killed_selection_goes_on_where_it_was(tiny_dit, photos, tmp_path, passes, monkeypatch):
    whole = make_sweep(tiny_dit, photos).run(progress=False)
    monkeypatch.setattr('mmaselect.selection.partial.SAVE_SECONDS', 0)
    monkeypatch.setattr('mmaselect.selection.partial._SHARE_OF_TIME', 0)
    cache = SelectionCache(tmp_path / 'cache')
    sweep = make_sweep(tiny_dit, photos, cache=cache)
    stop_after(sweep.dit, passes)
    with pytest.raises(KeyboardInterrupt):
        sweep.run(progress=False)
    again = make_sweep(tiny_dit, photos, cache=cache)
    calls = stop_after(again.dit, 1000)
    result = again.run(progress=False)
    # Three readings (the images, two views) at five timesteps, of three batches.
    assert len(calls) == 45 - passes // 3 * 3
    assert result.curve == whole.curve and result.others == whole.others
    assert result.interval == whole.interval
    assert result.model_evaluations == whole.model_evaluations
    assert [path.name for path in (tmp_path / 'cache').iterdir()] == [f'{result.key}.json']


@pytest.mark.parametrize('damage', [b'', b'no archive', 'folder', 'states', 'bit'])
def test_damaged_sums_are_no_obstacle(tiny_dit, photos, tmp_path, damage, monkeypatch):
    monkeypatch.setattr('mmaselect.selection.partial.SAVE_SECONDS', 0)
    monkeypatch.setattr('mmaselect.selection.partial._SHARE_OF_TIME', 0)
    cache = SelectionCache(tmp_path / 'cache')
    sweep = make_sweep(tiny_dit, photos, cache=cache)
    stop_after(sweep.dit, 7)
    with pytest.raises(KeyboardInterrupt):
        sweep.run(progress=False)
    (path,) = (tmp_path / 'cache' / 'partial').iterdir()
    if damage == 'states':
        stored = torch.load(path, weights_only=True)
        torch.save({**stored, 'sums': {key: {} for key in stored['sums']}}, path)
    elif damage == 'bit':
        with zipfile.ZipFile(path) as archive:
            values = max(
                (i for i in archive.infolist() if '/data/' in i.filename), key=lambda i: i.file_size
            )
            bytes_of = archive.read(values)
        raw = bytearray(path.read_bytes())
        raw[raw.find(bytes_of, values.header_offset) + len(bytes_of) // 2] ^= 0x10
        path.write_bytes(raw)
    else:
        path.unlink()
        path.mkdir() if damage == 'folder' else path.write_bytes(damage)
    result = make_sweep(tiny_dit, photos, cache=cache).run(progress=False)
    assert result.curve == make_sweep(tiny_dit, photos).run(progress=False).curve


@pytest.mark.parametrize('folder', ['/proc/mmaselect', 'file', 'x' * 300])
def test_a_cache_that_cannot_be_used_costs_the_cache_alone(
    tiny_dit, photos, tmp_path, folder, monkeypatch
):
    monkeypatch.setattr('mmaselect.selection.partial.SAVE_SECONDS', 0)
    (tmp_path / 'file').touch()
    cache = SelectionCache(tmp_path / folder)
    sweep = make_sweep(tiny_dit, photos, cache=cache)
    assert sweep.run(progress=False).timestep in GRID
    assert sweep.stored_at is None


def test_a_sweep_decodes_each_image_once(tiny_dit, photos):
    sweep = make_sweep(tiny_dit, photos)
    load, loaded = sweep.calibration.source.load, []
    sweep.calibration.source.load = lambda index: loaded.append(index) or load(index)
    sweep.run(progress=False)
    assert sorted(loaded) == sweep.calibration.chosen


# -- several ranks -------------------------------------------------------------------------------
def _rank(rank, world, folder, photos, out, trouble, num_images):
    torch.distributed.init_process_group(
        'gloo', init_method=f'file://{out}/store', rank=rank, world_size=world
    )
    os.environ['MMASELECT_RANK_TIMEOUT'] = '8' if trouble in ('dies', 'hangs') else '600'
    cache = SelectionCache('/proc/mmaselect' if trouble == 'cache' else f'{out}/cache')
    if trouble == 'other images' and rank == 1:
        photos = shutil.copytree(photos, f'{out}/photos')
        os.unlink(f'{photos}/07.png')
    if trouble == 'other pixels' and rank == 1:
        photos = shutil.copytree(photos, f'{out}/photos')
        for path in pathlib.Path(photos).glob('*.png'):
            Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    try:
        sweep = make_sweep(folder, photos, num_images=num_images, cache=cache)
        if rank == 1 and trouble == 'images':
            sweep.calibration.source.load = None
        elif rank == 1 and trouble == 'model':
            sweep.dit.features = None
        elif rank == 1 and trouble == 'weights':
            sweep.dit.transformer.transformer_blocks[2].attn1.to_q.bias.data += 1e-3
        elif rank == 1 and trouble == 'dies':
            sweep.dit.features = lambda *args: os._exit(9)
        elif rank == 1 and trouble == 'hangs':
            sweep.dit.features = lambda *args: time.sleep(1000)
        text = json.dumps(sweep.run(progress=False).to_dict())
    except Exception as error:
        text = json.dumps(dict(error=str(error)))
    with open(f'{out}/rank{rank}.json', 'w') as file:
        file.write(text)
    if trouble is None:
        torch.distributed.destroy_process_group()
    else:
        os._exit(0)  # gloo of PyTorch 2.6 waits here for a rank that has left for good


def run_ranks(folder, photos, out, trouble=None, world=2, num_images=9):
    """Results of the ranks; of those that do not end, None."""
    # Forked: a spawned process would import torch again, which takes longer than the test.
    args = (folder, photos, str(out), trouble, num_images)
    context = torch.multiprocessing.get_context('fork')
    ranks = [context.Process(target=_rank, args=(rank, world, *args)) for rank in range(world)]
    for process in ranks:
        process.start()
    stuck = {1} if trouble == 'hangs' else set()
    for rank, process in enumerate(ranks):
        if rank not in stuck:
            process.join(300)
    for process in ranks:
        process.kill()
    results = [out / f'rank{rank}.json' for rank in range(world)]
    return [json.loads(path.read_text()) if path.exists() else None for path in results]


def test_two_ranks_pick_what_one_picks(tiny_dit, photos, tmp_path):
    alone = make_sweep(tiny_dit, photos, num_images=9).run(progress=False)
    one, two = run_ranks(tiny_dit, photos, tmp_path)
    assert one == two
    assert one['timestep'] == alone.timestep
    assert one['model_evaluations'] == alone.model_evaluations
    assert [p['score'] for p in one['curve']] == pytest.approx(alone.curve.scores, abs=1e-9)
    assert len(list((tmp_path / 'cache').iterdir())) == 1


def test_more_ranks_than_images(tiny_dit, photos, tmp_path):
    alone = make_sweep(tiny_dit, photos, num_images=4).run(progress=False)
    # Batches of one image and of two are rounded alike to float32's precision.
    results = run_ranks(tiny_dit, photos, tmp_path, world=5, num_images=4)
    assert all(result == results[0] for result in results)
    assert [p['score'] for p in results[0]['curve']] == pytest.approx(alone.curve.scores, abs=1e-5)
    other = results[0]['others']['PaperHFR']
    assert [p['score'] for p in other['curve']] == pytest.approx(
        alone.others['PaperHFR'].scores, abs=1e-6
    )
    assert results[0]['model_evaluations'] == alone.model_evaluations


@pytest.mark.parametrize('trouble', ['images', 'model'])
def test_a_failing_rank_does_not_leave_the_other_waiting(tiny_dit, photos, tmp_path, trouble):
    one, two = run_ranks(tiny_dit, photos, tmp_path, trouble)
    assert 'failed on another rank' in one['error']
    assert 'NoneType' in two['error']


@pytest.mark.parametrize('trouble', ['dies', 'hangs'])
def test_a_lost_rank_is_named_within_the_time_that_is_set(tiny_dit, photos, tmp_path, trouble):
    one, *others = run_ranks(tiny_dit, photos, tmp_path, trouble, world=3)
    for result in (one, others[1]):
        assert 'rank 1 has died or hangs: no news from it for 8 s' in result['error']
    assert others[0] is None


@pytest.mark.parametrize(
    ('trouble', 'message'),
    [
        ('other images', 'the number of images of rank 1 is 23, of rank 0 24'),
        ('other pixels', 'the pixels of the first and the last image of rank 1 is'),
        ('weights', "the model's weights of rank 1 is"),
    ],
)
def test_ranks_that_see_something_else_are_told(tiny_dit, photos, tmp_path, trouble, message):
    for result in run_ranks(tiny_dit, photos, tmp_path, trouble):
        assert message in result['error']


def test_a_cache_that_cannot_be_written_ends_no_rank(tiny_dit, photos, tmp_path):
    one, two = run_ranks(tiny_dit, photos, tmp_path, 'cache')
    assert one == two and one['timestep'] in GRID
