# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Stored features are those of their images, and what was written: all else is found out."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mmaselect.apis import FeatureExtractor, load_features, save_features
from mmaselect.apis.stored_features import DamagedFeaturesError
from mmaselect.images.reading import UnreadableImageError
from mmaselect.selection import SelectionResult

OPTIONS = dict(timestep=30, blocks=[1, 3], features='query', image_size=32, progress=False)
OPTIONS |= dict(shard_size=2, batch_size=2)


@pytest.fixture
def images(photos, tmp_path):
    folder = tmp_path / 'images'
    folder.mkdir()
    for number in range(6):
        shutil.copy(f'{photos}/{number:02d}.png', folder / f'{number}.png')
    return folder


@pytest.fixture
def out(tiny_dit, images, tmp_path):
    """Features of six images, in three files."""
    save_features(images, tmp_path / 'out', tiny_dit, **OPTIONS)
    return tmp_path / 'out'


@pytest.fixture
def passes(monkeypatch):
    """Counts what goes through the model."""
    counted, call = [], FeatureExtractor.__call__
    monkeypatch.setattr(
        FeatureExtractor,
        '__call__',
        lambda self, pixels: counted.append(len(pixels)) or call(self, pixels),
    )
    return counted


def everything(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def swap(folder):
    one, two = (folder / f'features-0000{number}.safetensors' for number in (0, 1))
    first = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(first)


def shard(change):
    return lambda folder: change(folder / 'features-00001.safetensors')


def rewrite(tensors=lambda found: found, **about):
    def change(path):
        with safe_open(path, framework='pt') as file:
            told = json.loads(file.metadata()['about'])
        found = tensors({name: value.clone() for name, value in load_file(path).items()})
        told |= {name: value(told[name]) for name, value in about.items()}
        save_file({k: v.contiguous() for k, v in found.items()}, path, {'about': json.dumps(told)})

    return shard(change)


def each(change):
    return lambda found: {name: change(value) for name, value in found.items()}


def flip(path):
    data = bytearray(path.read_bytes())
    data[-len(data) // 3] ^= 0x40
    path.write_bytes(data)


DAMAGES = {
    'a flipped bit': shard(flip),
    'cut off': shard(lambda path: path.write_bytes(path.read_bytes()[:-10])),
    'empty': shard(lambda path: path.write_bytes(b'')),
    'text': shard(lambda path: path.write_text('<html>')),
    'zeros': shard(lambda path: path.write_bytes(bytes(path.stat().st_size))),
    'swapped': swap,
    'a copy of another': lambda folder: shutil.copy(
        folder / 'features-00000.safetensors', folder / 'features-00001.safetensors'
    ),
    'NaN': rewrite(each(lambda value: value * float('nan'))),
    'doubled': rewrite(each(lambda value: value * 2)),
    '5 channels': rewrite(each(lambda value: value[:, :5])),
    'half precision': rewrite(each(lambda value: value.half())),
    'a row less': rewrite(each(lambda value: value[:1])),
    'a row less, and a name': rewrite(each(lambda value: value[:1]), names=lambda names: names[:1]),
    'rows swapped': rewrite(each(lambda value: value.flip(0))),
    'names swapped': rewrite(names=lambda names: names[::-1]),
    'a name edited': rewrite(names=lambda names: ['9.png', names[1]]),
    'names are numbers': rewrite(names=lambda names: 5),
    'a checksum less': rewrite(checks=lambda checks: checks[:1]),
    'of other settings': rewrite(key=lambda key: 'x' * 32),
    'not the last': rewrite(last=lambda last: False),
    'a feature less': rewrite(lambda found: {'block1.query': found['block1.query']}),
    'a feature more': rewrite(lambda found: found | {'x': torch.ones(2)}),
    'nothing told': shard(lambda path: save_file(load_file(path), path)),
}
INDEX_DAMAGES = {
    'empty': lambda text: '',
    'cut off': lambda text: text[:100],
    'no JSON': lambda text: 'x',
    'a list': lambda text: '[]',
    'a number': lambda text: '5',
    'deep': lambda text: '[' * 100_000,
    'of an older version': lambda text: json.dumps(dict(settings={}, images=[])),
    'a timestep edited': lambda text: text.replace('"timestep": 30', '"timestep": 31'),
    'blocks edited': lambda text: text.replace('"shard_size": 2', '"shard_size": 3'),
    'no images': lambda text: json.dumps({**json.loads(text), 'images': None}),
    'no bytes of UTF-8': lambda text: b'\xff\xfe{',
}


def read_all(folder):
    stored = load_features(folder)
    for _ in stored.shards():
        pass
    return stored


@pytest.mark.parametrize('damage', DAMAGES)
def test_a_damaged_shard_is_named_and_computed_again(tiny_dit, images, out, caplog, passes, damage):
    whole = everything(out)
    DAMAGES[damage](out)
    with pytest.raises(DamagedFeaturesError, match=r'features-0000\d\.safetensors.*computes that'):
        read_all(out)
    with pytest.raises(DamagedFeaturesError):
        stored = load_features(out)
        [stored[index] for index in range(len(stored))]
    save_features(images, out, tiny_dit, **OPTIONS)
    assert everything(out) == whole
    assert 'features-0000' in caplog.text and sum(passes) <= 4
    read_all(out)


@pytest.mark.parametrize('damage', INDEX_DAMAGES)
def test_a_damaged_index_is_named(tiny_dit, images, out, damage):
    whole = everything(out)
    text = INDEX_DAMAGES[damage]((out / 'index.json').read_text())
    (out / 'index.json').write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DamagedFeaturesError, match=r'index\.json.* is damaged.*--overwrite'):
        load_features(out)
    with pytest.raises(DamagedFeaturesError, match='--overwrite'):
        save_features(images, out, tiny_dit, **OPTIONS)
    save_features(images, out, tiny_dit, overwrite=True, **OPTIONS)
    assert everything(out) == whole


def test_another_folder_is_another_set(tiny_dit, images, out, tmp_path, passes):
    """The same names and sizes in it, as frames of two videos have."""
    other = tmp_path / 'other'
    shutil.copytree(images, other)
    for path in other.iterdir():
        image = Image.open(path).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        image.save(path)
    before = everything(out)
    with pytest.raises(FileExistsError, match=r'other images.*--overwrite'):
        save_features(other, out, tiny_dit, **OPTIONS)
    assert everything(out) == before and not passes


def test_a_picture_that_was_replaced(tiny_dit, images, out, caplog, passes):
    shutil.copy(images / '5.png', images / '2.png')
    stored = save_features(images, out, tiny_dit, **OPTIONS)
    assert passes == [2] and 'features-00001.safetensors is computed again' in caplog.text
    assert torch.equal(stored[2][1, 'query'], stored[5][1, 'query'])
    assert stored.images[2] == stored.images[5]


def test_a_folder_that_was_moved_is_the_same_set(tiny_dit, images, out, tmp_path, passes):
    images.rename(tmp_path / 'moved')
    save_features(tmp_path / 'moved', out, tiny_dit, **OPTIONS)
    assert not passes


def test_a_model_that_was_trained_further(tiny_dit, images, tmp_path, passes):
    model = tmp_path / 'model'
    shutil.copytree(tiny_dit, model)
    out = tmp_path / 'out'
    save_features(images, out, str(model), **OPTIONS)
    (weights,) = (model / 'transformer').glob('*.safetensors')
    tensors = load_file(weights)
    name = next(n for n in tensors if 'transformer_blocks.1' in n and n.endswith('to_q.weight'))
    tensors[name] = tensors[name].clone()
    tensors[name][0, 0] += 1e-4
    save_file(tensors, weights)
    with pytest.raises(FileExistsError, match='weights or condition of the model'):
        save_features(images, out, str(model), **OPTIONS)
    assert len(passes) == 3
    shutil.copytree(tiny_dit, tmp_path / 'same')
    save_features(images, out, str(tmp_path / 'same'), **OPTIONS)  # elsewhere, and the same
    assert len(passes) == 3


def test_a_broken_image_is_removed_as_the_message_says(tiny_dit, images, tmp_path, passes):
    out, broken = tmp_path / 'out', images / '3.png'
    broken.write_bytes(broken.read_bytes()[:50])
    with pytest.raises(UnreadableImageError, match=r'3\.png.*Remove or replace it'):
        save_features(images, out, tiny_dit, **OPTIONS)
    assert len(list(out.glob('*.safetensors'))) == 1
    broken.unlink()
    stored = save_features(images, out, tiny_dit, **OPTIONS)
    assert stored.paths == ['0.png', '1.png', '2.png', '4.png', '5.png']
    assert passes == [2, 2, 1], 'the first file is kept'
    read_all(out)


def test_images_that_were_added(tiny_dit, images, out, photos, passes):
    shutil.copy(f'{photos}/07.png', images / '7.png')
    assert len(save_features(images, out, tiny_dit, **OPTIONS)) == 7 and passes == [1]
    (images / '7.png').unlink()
    assert len(save_features(images, out, tiny_dit, **OPTIONS)) == 6
    assert len(list(out.glob('*.safetensors'))) == 3


def test_a_selection_of_another_model(tiny_dit, photos, images, tmp_path):
    options = {**OPTIONS, 'timestep': 'auto'}
    save_features(photos, tmp_path / 'a', tiny_dit, **options)
    result = SelectionResult.load(tmp_path / 'a' / 'selection.json')
    own = save_features(images, tmp_path / 'b', tiny_dit, **{**OPTIONS, 'timestep': result})
    assert own.timestep == result.timestep
    for read in (
        lambda: save_features(
            images, tmp_path / 'c', 'mmaselect://dit_digits', **{**OPTIONS, 'timestep': result}
        ),
        lambda: FeatureExtractor('mmaselect://dit_digits', result),
    ):
        with pytest.raises(ValueError, match=r'made with another model \(its transformer_config'):
            read()
    assert not (tmp_path / 'c' / 'index.json').exists()
    with pytest.raises(ValueError, match='its weights, or condition differ'):
        FeatureExtractor(tiny_dit, result, blocks=[1, 3], condition=3)
    assert FeatureExtractor(tiny_dit, result, dtype='bf16').timestep == result.timestep


def test_bf16_and_no_image(tiny_dit, images, tmp_path):
    stored = save_features(images, tmp_path / 'out', tiny_dit, store='bf16', **OPTIONS)
    assert stored[0][1, 'query'].dtype == torch.bfloat16
    with pytest.raises(ValueError, match='NumPy has no type'):
        load_features(tmp_path / 'out', 'numpy')
    with pytest.raises(ValueError, match='has no bf16'):
        save_features(images, tmp_path / 'x', tiny_dit, store='bf16', to='parquet', **OPTIONS)
    with pytest.raises(FileNotFoundError, match='no images at'):
        save_features(Path('nowhere'), tmp_path / 'x', tiny_dit, **OPTIONS)
