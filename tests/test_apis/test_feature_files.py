# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Features of a folder as files: what they hold, how a stopped run goes on, how they are read."""

import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from mmaselect.apis import FeatureExtractor, feature_files, load_features, save_features
from mmaselect.images import load_rgb, resize_and_crop
from mmaselect.selection import SelectionResult

OPTIONS = dict(timestep=30, blocks=[1, 3], features=['query', 'output'], progress=False)


@pytest.fixture
def images(photos, tmp_path):
    """Seven images in two folders, of two sizes."""
    folder = tmp_path / 'images'
    for number in range(7):
        target = folder / 'ab'[number % 2] / f'{number}.png'
        target.parent.mkdir(parents=True, exist_ok=True)
        image = Image.open(f'{photos}/{number:02d}.png')
        (image if number % 3 else image.resize((60, 36))).save(target)
    return folder


def test_equal_to_the_extractor(tiny_dit, images, tmp_path):
    stored = save_features(
        images, tmp_path / 'out', tiny_dit, image_size=32, shard_size=3, batch_size=2, **OPTIONS
    )
    assert len(stored) == 7 and stored.paths == sorted(stored.paths)
    assert stored.paths[0] == 'a/0.png' and stored.timestep == 30
    assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == [
        *(f'features-0000{number}.safetensors' for number in range(3)),
        'index.json',
    ]
    extract = FeatureExtractor(tiny_dit, 30, blocks=[1, 3], features=['query', 'output'])
    for index in (0, 4, 6):
        maps = extract(resize_and_crop(load_rgb(images / stored.paths[index]), 32))
        assert stored[index].keys() == maps.keys()
        for key, value in maps.items():
            assert torch.allclose(stored[index][key], value[0], atol=1e-5)
    whole = stored.stack(3, 'output')
    assert whole.shape == (7, 16, 8, 8)
    assert torch.equal(whole[-1], stored[-1][3, 'output'])
    paths = [path for shard, _ in stored.shards() for path in shard]
    assert paths == stored.paths
    with pytest.raises(IndexError, match='index 7 is out of range: there are 7'):
        stored[7]
    with pytest.raises(KeyError, match=r"\(2, 'query'\) is not stored; there are \[\(1, 'query'"):
        stored.stack(2)


def test_readers(tiny_dit, images, tmp_path):
    options = dict(timestep=30, blocks=2, image_size=32, shard_size=4, progress=False)
    save_features(images, tmp_path / 'maps', tiny_dit, **options)
    save_features(images, tmp_path / 'means', tiny_dit, pool='mean', store='fp16', **options)
    arrays = load_features(tmp_path / 'means', framework='numpy')
    assert arrays[5][2, 'query'].dtype == np.float16 and arrays.stack(2).shape == (7, 16)
    tensors = load_features(tmp_path / 'maps')
    np.testing.assert_allclose(
        arrays.stack(2), tensors.stack(2).mean((2, 3)).numpy(), rtol=2e-3, atol=1e-4
    )
    assert torch.equal(pickle.loads(pickle.dumps(tensors))[6][2, 'query'], tensors[6][2, 'query'])
    batches = list(DataLoader(tensors, batch_size=4))
    assert torch.equal(batches[1][2, 'query'], tensors.stack(2)[4:])


def test_a_stopped_run_goes_on(tiny_dit, images, tmp_path, monkeypatch):
    out = tmp_path / 'out'
    options = dict(image_size=32, shard_size=2, batch_size=2, **OPTIONS)
    save_features(images, out, tiny_dit, **options)
    # Clones: what load_file gives is mapped to the files, one of which is damaged below.
    whole = [
        {name: value.clone() for name, value in load_file(path).items()}
        for path in sorted(out.glob('*.safetensors'))
    ]
    stamps = {path: path.stat().st_mtime_ns for path in out.glob('*.safetensors')}
    first, second, *_, last = sorted(stamps)
    second.unlink()
    last.write_bytes(last.read_bytes()[:-10])  # a disk that was full
    with pytest.raises(FileNotFoundError, match=r'lacks 1 of 4 files, such as features-00001\.'):
        load_features(out)
    calls = []
    call = FeatureExtractor.__call__
    monkeypatch.setattr(
        FeatureExtractor, '__call__', lambda self, pixels: calls.append(1) or call(self, pixels)
    )
    save_features(images, out, tiny_dit, **options)
    assert len(calls) == 2 and first.stat().st_mtime_ns == stamps[first]
    for path, before in zip(sorted(stamps), whole, strict=True):
        after = load_file(path)
        assert all(torch.equal(after[name], before[name]) for name in before)


def test_other_settings_are_refused_or_replaced(tiny_dit, images, tmp_path):
    out = tmp_path / 'out'
    save_features(images, out, tiny_dit, image_size=32, shard_size=2, **OPTIONS)
    changed = r'another model, other settings or .* \(seed 0 -> 1\): .*--overwrite'
    with pytest.raises(FileExistsError, match=changed):
        save_features(images, out, tiny_dit, image_size=32, shard_size=2, seed=1, **OPTIONS)
    (images / 'a' / '0.png').unlink()
    with pytest.raises(FileExistsError, match='other images'):
        save_features(images, out, tiny_dit, image_size=32, shard_size=2, **OPTIONS)
    stored = save_features(
        images, out, tiny_dit, image_size=32, shard_size=5, overwrite=True, **OPTIONS
    )
    assert len(stored) == 6 and len(list(out.glob('*.safetensors'))) == 2


def test_an_automatic_timestep_is_kept(tiny_dit, photos, tmp_path, monkeypatch):
    options = dict(blocks=2, image_size=32, pool='mean', progress=False)
    stored = save_features(photos, tmp_path, tiny_dit, timestep='auto', **options)
    selection = json.loads((tmp_path / 'selection.json').read_text())
    assert stored.timestep == selection['timestep'] and (tmp_path / 'selection.png').is_file()
    assert stored.settings['timestep'] == 'auto'

    def never(*args, **kwargs):
        raise AssertionError('selected a second time')

    monkeypatch.setattr(feature_files, 'select_timestep', never)
    again = save_features(photos, tmp_path, tiny_dit, timestep='auto', **options)
    assert again.timestep == stored.timestep


@pytest.mark.parametrize('timestep', ['auto', 300])
def test_an_automatic_place_is_picked_once(tiny_dit, photos, tmp_path, monkeypatch, timestep):
    monkeypatch.setenv('MMASELECT_CACHE', str(tmp_path / 'cache'))
    options = dict(
        blocks='auto:2', feature='auto', timestep=timestep, image_size=32, progress=False,
        selection=dict(timesteps=[0, 300]), batch_size=8,
    )  # fmt: skip
    stored = save_features(photos, tmp_path / 'out', tiny_dit, **options)
    selection = json.loads((tmp_path / 'out/selection.json').read_text())
    assert stored.timestep == selection['timestep'] and len(stored.keys) == 2
    assert {block for block, _ in stored.keys} == set(selection['blocks'])
    assert {feature for _, feature in stored.keys} == {selection['feature']}
    named = save_features(
        photos, tmp_path / 'named', tiny_dit, blocks=selection['blocks'], image_size=32,
        feature=selection['feature'], timestep=stored.timestep, progress=False, batch_size=8,
    )  # fmt: skip
    for key in stored.keys:
        assert np.array_equal(stored.stack(*key), named.stack(*key))
    # A run that resumes finds its place in the cache, and its files.
    kept = sorted((tmp_path / 'cache').rglob('*.json'))
    again = save_features(photos, tmp_path / 'out', tiny_dit, **options)
    assert again.keys == stored.keys
    assert sorted((tmp_path / 'cache').rglob('*.json')) == kept
    with pytest.raises(ValueError, match='was made at a place: give blocks='):
        result = SelectionResult.from_dict(selection)
        save_features(photos, tmp_path / 'x', tiny_dit, **{**options, 'timestep': result})


def test_bad_arguments(tiny_dit, images, tmp_path):
    out = tmp_path / 'out'
    for options, message in (
        (dict(pool='max'), 'pool must be one of none, mean'),
        (dict(store='int8'), 'store must be one of fp32, fp16'),
        (dict(shard_size=0), 'shard_size must be at least 1, got 0'),
        (dict(timestep='soon'), "timestep must be 'auto' or a whole number, got 'soon'"),
    ):
        with pytest.raises(ValueError, match=message):
            save_features(images, out, tiny_dit, **{**OPTIONS, **options})
    with pytest.raises(ValueError, match='is inside the folder of images'):
        save_features(images, images / 'out', tiny_dit, **OPTIONS)
    assert not out.exists()
    with pytest.raises(FileNotFoundError, match=r'holds no index\.json'):
        load_features(out)
    save_features(images, out, tiny_dit, **OPTIONS)
    with pytest.raises(ValueError, match='framework must be one of torch, numpy'):
        load_features(out, framework='jax')


def test_too_large_for_half_precision():
    maps = torch.full((1, 2, 3, 3), 1e5)
    with pytest.raises(ValueError, match=r'not finite in fp16: their largest is 1e\+05'):
        feature_files._as_stored(maps, 'none', 'fp16')
    assert feature_files._as_stored(maps, 'mean', 'fp32').tolist() == [[1e5, 1e5]]
