# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""``cache`` of the backbone: what is computed once, and what cannot be read wrongly."""

import copy
import io
import logging
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from forks import exit_code, forked
from mmengine.logging import MMLogger
from mmengine.optim import OptimWrapper
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from toy_segmentor import Segmentor

from mmaselect.models import ASelecTDiT
from mmaselect.models.backbones import tensor_store
from mmaselect.models.backbones.tensor_store import TensorStore


def make(folder, cache='features', **options):
    if cache != 'latents':
        options.setdefault('noise', 'fixed')
    return ASelecTDiT(folder, **{**dict(blocks=[1, 3], timestep=300, cache=cache), **options})


def count(model):
    """Images that go through the transformer, and through the VAE, from now on."""
    counted = dict(passes=0, encoded=0)
    model.dit.transformer.register_forward_pre_hook(
        lambda module, args: counted.update(passes=counted['passes'] + len(args[0]))
    )
    model.dit.codec.register_forward_pre_hook(
        lambda module, args: counted.update(encoded=counted['encoded'] + len(args[0]))
    )
    return counted


def shards(root):
    return sorted(Path(root).rglob('shard-*.safetensors'))


@pytest.fixture
def root(tmp_path):
    return tmp_path / 'cache' / 'frozen'  # of MMASELECT_CACHE, as in conftest.py


@pytest.fixture
def heard():
    """What is logged."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    MMLogger.get_current_instance().addHandler(handler)
    yield stream
    MMLogger.get_current_instance().removeHandler(handler)


def test_features_are_computed_once(tiny_latent_dit, root):
    images = torch.rand(5, 3, 32, 32) * 2 - 1
    plain = make(tiny_latent_dit, None)(images)
    model = make(tiny_latent_dit)
    counted = count(model)
    first = model(images)
    assert counted == dict(passes=5, encoded=5)
    assert all(torch.equal(*pair) for pair in zip(first, plain, strict=True))
    again = model(images.flip(0))
    # A flip is another image; an image that is there twice is computed once.
    mirrored = model(torch.cat([images[:2].flip(3), images[:2].flip(3), images[4:]]))
    assert counted == dict(passes=7, encoded=7)
    assert all(torch.equal(a, b.flip(0)) for a, b in zip(first, again, strict=True))
    assert torch.equal(mirrored[0][4], first[0][4])
    alone = make(tiny_latent_dit, None)(images[:1].flip(3))[1][0]
    assert torch.allclose(mirrored[1][2], alone, atol=1e-5)
    assert all(each.dtype == torch.float32 for each in mirrored)

    del model  # what was in memory is written
    second = make(tiny_latent_dit)
    counted = count(second)
    read = second(images)
    assert counted == dict(passes=0, encoded=0)
    assert all(torch.equal(*pair) for pair in zip(read, plain, strict=True))
    assert len(shards(root)) >= 1


@pytest.mark.parametrize(
    'other',
    [
        dict(timestep=301),
        dict(noise=dict(mode='fixed', seed=1)),
        dict(noise=dict(mode='fixed', draws=2)),
        dict(blocks=[1, 2]),
        dict(feature='key'),
        dict(dtype='bf16'),
        dict(condition=3),
        dict(cache=dict(kind='features', dtype='bf16')),
    ],
)
def test_other_features_are_others(tiny_dit, other):
    images = torch.rand(2, 3, 32, 32)
    model = make(tiny_dit)
    model(images)
    model.cache.flush()
    changed = make(tiny_dit, **other)
    counted = count(changed)
    expected = make(tiny_dit, **{**other, 'cache': None})(images)
    maps = changed(images)
    assert counted['passes'] == 2 * other.get('noise', {}).get('draws', 1)
    atol = 0.0 if 'cache' not in other else 2e-2
    assert all(torch.allclose(*p, atol=atol, rtol=atol) for p in zip(maps, expected, strict=True))


def test_edited_weights_are_other_weights(tiny_dit):
    images = torch.rand(2, 3, 32, 32)
    model = make(tiny_dit)
    model(images)
    model.cache.flush()
    edited = make(tiny_dit)
    with torch.no_grad():
        edited.dit.transformer.transformer_blocks[0].attn1.to_q.weight[0, 0] += 1
    assert not torch.equal(edited(images)[0], model(images)[0])


def test_latents_are_encoded_once_and_noise_stays_fresh(tiny_latent_dit):
    images = torch.rand(3, 3, 32, 32) * 2 - 1
    plain = make(tiny_latent_dit, None, noise='auto').train()
    torch.manual_seed(3)
    expected = [plain(images)[0] for _ in range(2)]
    model = make(tiny_latent_dit, 'latents').train()
    counted = count(model)
    torch.manual_seed(3)
    found = [model(images)[0] for _ in range(2)]
    assert counted == dict(passes=6, encoded=3)
    # Up to rounding: convolutions go by how a latent lies in memory.
    assert all(torch.allclose(*p, atol=1e-5) for p in zip(found, expected, strict=True))
    assert not torch.allclose(*found, atol=1e-2)
    model.cache.flush()
    other = make(tiny_latent_dit, 'latents', blocks=[2], timestep=7, noise='fixed')
    counted = count(other)
    other(images)
    assert counted == dict(passes=3, encoded=0), 'latents are those of any block and timestep'


@pytest.mark.parametrize('dtype', ['fp16', 'bf16'])
def test_smaller_files_give_the_same_before_and_after(tiny_dit, root, dtype):
    images = torch.rand(4, 3, 32, 32)
    exact = make(tiny_dit, None)(images)
    model = make(tiny_dit, dict(kind='features', dtype=dtype))
    first = model(images)
    model.cache.flush()
    read = make(tiny_dit, dict(kind='features', dtype=dtype))(images)
    assert all(torch.equal(*pair) for pair in zip(first, read, strict=True))
    assert not torch.equal(first[0], exact[0]) and torch.allclose(first[0], exact[0], rtol=1e-2)
    with safe_open(shards(root)[0], framework='pt') as shard:
        assert shard.get_slice('1').get_dtype() == dict(fp16='F16', bf16='BF16')[dtype]


def test_bf16_models_are_kept_in_bf16_without_loss(tiny_dit, root):
    images = torch.rand(2, 3, 32, 32)
    model = make(tiny_dit, dtype='bf16')
    assert torch.equal(model(images)[0], make(tiny_dit, None, dtype='bf16')(images)[0])
    model.cache.flush()
    with safe_open(shards(root)[0], framework='pt') as shard:
        assert shard.get_slice('3').get_dtype() == 'BF16'


def test_overflow_of_the_files_is_an_error(tiny_dit):
    model = make(tiny_dit, dict(kind='features', dtype='fp16'))
    with torch.no_grad():
        model.dit.transformer.transformer_blocks[1].attn1.to_q.bias.fill_(1e6)
    with pytest.raises(ValueError, match=r"overflow in float16.*'bf16' or 'fp32'"):
        model(torch.rand(1, 3, 32, 32))


def test_images_of_several_sizes(tiny_latent_dit, root):
    model = make(tiny_latent_dit)
    batches = [torch.rand(2, 3, *size) for size in ((32, 32), (16, 40), (32, 32))]
    expected = [make(tiny_latent_dit, None)(batch) for batch in batches]
    counted = count(model)
    for _ in range(2):
        for batch, maps in zip(batches, expected, strict=True):
            assert all(torch.equal(*pair) for pair in zip(model(batch), maps, strict=True))
    assert counted['passes'] == 6
    model.cache.flush()
    assert len(list(root.iterdir())) == 2, 'a folder for each size'


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(noise='auto'), r"noise='auto' an image never gives the same.*cache='latents'"),
        (dict(noise='fresh'), r"noise='fresh'"),
        (dict(cache='latents'), r'this model has none \(it works on pixels\)'),
        (dict(cache='maps'), 'cache kind must be one of features, latents'),
        (dict(cache=dict(dtype='fp16')), 'cache kind must be one of features, latents'),
        (dict(cache=True), 'cache must be None, one of features, latents, or a dict'),
        (dict(cache=dict(kind='features', size=3)), r"unknown keys \['size'\]"),
        (dict(cache=dict(kind='features', max_gb=0)), 'max_gb must be a number above 0'),
        (dict(cache=dict(kind='features', dtype='int8')), "use 'fp32', 'fp16' or 'bf16'"),
    ],
)
def test_what_cannot_be_kept_is_refused(tiny_dit, options, message):
    with pytest.raises(ValueError, match=message):
        make(tiny_dit, **{'cache': 'features', **options})


# -- in training ----------------------------------------------------------------------------------
def seeded_segmentor(backbone):
    torch.manual_seed(0)
    return Segmentor(backbone)


@pytest.mark.parametrize('amp', [False, True])
def test_training_ends_where_it_would_without(tiny_dit, amp):
    images, labels = torch.rand(6, 3, 32, 32), torch.randint(0, 2, (6, 8, 8))
    heads = []
    for cache in (None, 'features'):
        model = seeded_segmentor(make(tiny_dit, cache, noise='fixed'))
        wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.5))
        counted = count(model.backbone)
        for epoch in range(3):
            model.train()
            order = torch.randperm(6, generator=torch.Generator().manual_seed(epoch))
            for batch in order.split(2):
                with torch.autocast('cpu', torch.bfloat16, enabled=amp):
                    loss = model(images[batch], labels[batch], mode='loss')['loss']
                wrapper.update_params(loss)
        assert counted['passes'] == (6 if cache else 18)
        heads.append(model.head.weight.detach())
    assert torch.allclose(*heads, atol=1e-6)


def test_copies_share_it(tiny_dit):
    model = make(tiny_dit)
    images = torch.rand(2, 3, 32, 32)
    expected = model(images)
    twin = copy.deepcopy(model)
    assert twin.cache is model.cache
    counted = count(model)
    assert torch.equal(twin.eval()(images)[0], expected[0])
    assert counted['passes'] == 0
    assert set(model.state_dict()) == {'picked_timestep', 'frozen_signature', 'read_from'} | {
        'arrives_as',
        'conditioned_on',
    }


# -- files ----------------------------------------------------------------------------------------
def flip_a_bit(shard):
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 0x40
    shard.write_bytes(data)


def rewrite(**changes):
    def change(shard):
        tensors = load_file(shard)
        for name, how in changes.items():
            tensors[name] = how(tensors[name].clone())
        save_file({name: value.contiguous() for name, value in tensors.items()}, shard)

    return change


def without_checks(shard):
    tensors = load_file(shard)
    del tensors['checks']
    save_file(tensors, shard)


@pytest.mark.parametrize(
    'damage',
    [
        lambda shard: shard.write_bytes(shard.read_bytes()[:-100]),
        lambda shard: shard.write_bytes(b'x'),
        flip_a_bit,
        rewrite(**{'1': lambda maps: maps * 2}),
        rewrite(**{'1': lambda maps: maps * float('nan')}),
        rewrite(**{'3': lambda maps: maps[:, :5]}),
        rewrite(**{'3': lambda maps: maps.half()}),
        rewrite(**{'3': lambda maps: maps[:3]}),
        rewrite(**{'1': lambda maps: maps.flip(0)}),
        rewrite(keys=lambda keys: keys.roll(1, 0)),
        rewrite(keys=lambda keys: keys[:, :8]),
        rewrite(checks=lambda checks: checks[:, :1]),
        without_checks,
    ],
    ids=[
        *('cut', 'no file', 'bit', 'doubled', 'NaN', '5 channels', 'half', 'a row less'),
        *('other images', 'other keys', 'short keys', 'a checksum less', 'no checksums'),
    ],
)
def test_a_damaged_shard_is_named_and_computed_again(tiny_dit, root, heard, damage):
    images = torch.rand(4, 3, 32, 32)
    model = make(tiny_dit)
    expected = model(images)[0]
    model.cache.flush()
    (shard,) = shards(root)
    damage(shard)
    second = make(tiny_dit)
    counted = count(second)
    assert torch.equal(second(images)[0], expected)
    assert counted['passes'] == 4
    assert f'{shard} is damaged' in heard.getvalue()
    second.cache.flush()
    assert shards(root) == [shard]
    third = make(tiny_dit)
    counted = count(third)
    assert torch.equal(third(images)[0], expected) and counted['passes'] == 0


def test_a_killed_writer_leaves_nothing_that_is_read(tiny_dit, root, tmp_path):
    """A process that writes shards without an end is killed; then all that is there is right."""
    log = tmp_path / 'printed'

    def write():
        model = make(tiny_dit)
        generator = torch.Generator().manual_seed(0)
        while True:
            model(torch.rand(8, 3, 32, 32, generator=generator))
            model.cache.flush()

    writer = forked(write, log)
    try:
        deadline = time.monotonic() + 600  # on a busy machine
        while len(shards(root)) < 3:
            assert os.waitpid(writer, os.WNOHANG) == (0, 0), log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        os.kill(writer, signal.SIGKILL)
    assert exit_code(writer) == -signal.SIGKILL, log.read_text()
    generator = torch.Generator().manual_seed(0)
    model, plain = make(tiny_dit), make(tiny_dit, None)
    counted = count(model)
    for _ in range(2):
        images = torch.rand(8, 3, 32, 32, generator=generator)
        assert torch.equal(model(images)[1], plain(images)[1])
    assert counted['passes'] == 0
    model(torch.full((1, 3, 32, 32), 0.5))  # not among those that were written, whatever the seed
    model.cache.flush()
    assert counted['passes'] == 1
    left = [path for path in root.rglob('*') if path.name.startswith('.')]
    assert not left, 'the next writer clears what a killed one left'


def test_the_bound_holds_and_is_said(tiny_dit, root, heard):
    images = torch.rand(4, 3, 32, 32)
    model = make(tiny_dit, dict(kind='features', max_gb=1e-5))  # 10 kB; a map has 4 kB
    expected = make(tiny_dit, None)(images)
    model(images)
    model.cache.flush()
    assert not shards(root)
    counted = count(model)
    assert torch.equal(model(images)[0], expected[0])
    assert counted['passes'] == 4
    model(images)
    assert heard.getvalue().count('max_gb=1e-05 allows no more') == 1


def test_a_folder_that_cannot_be_written(tiny_dit, tmp_path, heard):
    (tmp_path / 'file').write_text('no folder')
    images = torch.rand(2, 3, 32, 32)
    model = make(tiny_dit, dict(kind='features', folder=str(tmp_path / 'file')))
    assert torch.equal(model(images)[0], make(tiny_dit, None)(images)[0])
    assert heard.getvalue().count('cannot be used') == 1


def test_another_process_is_seen_at_once(tmp_path):
    stores = [TensorStore(tmp_path / 'a', dict(x=1), tmp_path, 1e9) for _ in range(2)]
    keys = [bytes([number]) * 16 for number in range(6)]
    values = torch.arange(12.0).view(6, 2)
    for turn in range(3):
        mine = keys[2 * turn : 2 * turn + 2]
        stores[turn % 2].add(mine, {'v': values[2 * turn : 2 * turn + 2]})
        assert stores[1 - turn % 2].find(mine) == [None, None]
        stores[turn % 2].flush()
        for store in stores:
            rows = [tensors['v'][row] for tensors, row in store.find(keys[: 2 * turn + 2])]
            assert torch.equal(torch.stack(rows), values[: 2 * turn + 2])
    # What both have computed is written once.
    more = [b'z' * 16]
    for store in stores:
        store.add(more, {'v': torch.ones(1, 2)})
    for store in stores:
        store.flush()
    assert len(shards(tmp_path)) == 4
    with pytest.raises(ValueError, match='it was edited'):
        TensorStore(tmp_path / 'a', dict(x=2), tmp_path, 1e9)


def test_shards_are_written_as_they_fill(tmp_path):
    store = TensorStore(tmp_path / 'a', {}, tmp_path, 1e9, shard_bytes=200)
    for number in range(10):
        store.add([bytes([number]) * 16], {'v': torch.full((1, 8), float(number))})
    assert len(shards(tmp_path)) == 2, '48 bytes an entry'
    assert len(store) == 10
    assert tensor_store.folder_bytes(tmp_path) > 400


def test_what_the_cache_needs_is_named(tiny_dit, monkeypatch):
    monkeypatch.setattr(tensor_store, '_MISSING', ImportError('No module named xxhash'))
    with pytest.raises(ImportError, match='pip install xxhash'):
        make(tiny_dit)
    make(tiny_dit, cache=None)


def test_checksums_fit_into_an_int64():
    found = [tensor_store.checksum(bytes([n]), start) for n in range(64) for start in (0, -5)]
    assert len(set(found)) == 128 and min(found) < 0 < max(found)
    assert torch.tensor(found).tolist() == found
