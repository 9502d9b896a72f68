# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Damaged pipeline folders: each error names the file and says what to do."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
from sources import described

from mmaselect.diffusion import FrozenDiT

WEIGHTS = 'diffusion_pytorch_model.safetensors'
REPAIR = r'Download or copy that part again'


@pytest.fixture
def folder(tiny_latent_dit, tmp_path):
    return Path(shutil.copytree(tiny_latent_dit, tmp_path / 'model'))


def edit(file, *drop, **changes):
    entries = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({k: v for k, v in entries.items() if k not in drop}))


def refused(folder, message, **options):
    message = f'(?s){message}'
    with pytest.raises((ValueError, FileNotFoundError, RuntimeError), match=message) as caught:
        FrozenDiT.from_pretrained(dict(model=folder, **options))
    assert str(folder) in str(caught.value), 'the message names the folder'


@pytest.mark.parametrize('part', ['transformer', 'vae'])
def test_weight_files(folder, part):
    file = folder / part / WEIGHTS
    whole = file.read_bytes()
    for content, words in (
        (whole[: len(whole) // 2], 'is truncated or damaged'),
        (whole[:5], 'is truncated or damaged'),
        (b'garbage' * 1000, 'is truncated or damaged'),
        (b'', r'is empty \(0 bytes\)'),
    ):
        file.write_bytes(content)
        refused(folder, rf'{part}/{WEIGHTS}.* {words}.*{REPAIR}')
    safetensors.torch.save_file({}, file, metadata={'format': 'pt'})
    refused(
        folder, rf'{part}/{WEIGHTS}.* holds no tensors|{part}: the checkpoint lacks \d+ weights'
    )
    file.unlink()
    refused(folder, rf'{part}. holds no weights.*{REPAIR}')
    shutil.rmtree(folder / part)
    if part == 'transformer':
        refused(folder, 'has no transformer/config.json')
    else:
        (folder / 'model_index.json').write_text(
            json.dumps(dict(vae=['diffusers', 'AutoencoderKL']))
        )
        refused(folder, 'model_index.json names a vae, and there is no folder vae/')


def test_a_vae_that_is_gone_from_a_folder_without_an_index(folder):
    shutil.rmtree(folder / 'vae')
    dit = FrozenDiT.from_pretrained(folder)
    with pytest.raises(
        ValueError, match=r'latents of 4 channels, and PixelCodec gives 3: the vae/'
    ):
        dit.encode(torch.zeros(1, 3, 32, 32))


@pytest.mark.parametrize(
    ('part', 'name'),
    [('transformer', 'transformer_blocks.1.attn1.to_q.weight'), ('vae', 'encoder.conv_in.weight')],
)
def test_weights_of_a_wrong_shape_or_missing(folder, part, name):
    file = folder / part / WEIGHTS
    weights = safetensors.torch.load_file(file)
    wrong = {**weights, name: torch.zeros(3, 5)}
    safetensors.torch.save_file(wrong, file, metadata={'format': 'pt'})
    refused(folder, rf'{part} cannot be built: .*{name}.*do not belong together.*{REPAIR}')
    del weights[name]
    safetensors.torch.save_file(weights, file, metadata={'format': 'pt'})
    refused(folder, rf'{part}: the checkpoint lacks 1 weights .*{name}.*download is incomplete')


@pytest.mark.parametrize('part', ['transformer', 'vae'])
def test_pickled_weights_are_read_as_diffusers_reads_them(folder, part):
    """A ``.bin`` alone: the same features; a damaged one is named."""
    images = torch.rand(1, 3, 32, 32) * 2 - 1
    expected = FrozenDiT.from_pretrained(folder).encode(images)
    weights = safetensors.torch.load_file(folder / part / WEIGHTS)
    (folder / part / WEIGHTS).unlink()
    file = folder / part / 'diffusion_pytorch_model.bin'
    torch.save(weights, file)
    assert torch.equal(FrozenDiT.from_pretrained(folder).encode(images), expected)
    file.write_bytes(file.read_bytes()[:500])
    refused(folder, rf'{part}/diffusion_pytorch_model\.bin.* is truncated or damaged.*{REPAIR}')


@pytest.mark.parametrize(
    ('file', 'changes', 'message'),
    [
        ('transformer/config.json', dict(patch_size=0), "'patch_size' must be at least 1, got 0"),
        ('transformer/config.json', dict(num_layers='six'), "'num_layers' must be int, got 'six'"),
        ('transformer/config.json', dict(num_layers=0), r'it has \(0,\) blocks'),
        ('transformer/config.json', dict(num_layers=-3), 'it has .*blocks'),
        ('transformer/config.json', dict(in_channels=[4]), r"'in_channels' must be int, got \[4\]"),
        ('transformer/config.json', dict(sample_size=0), "'sample_size' must be at least 1"),
        ('transformer/config.json', dict(attention_head_dim=4), 'transformer cannot be built'),
        ('vae/config.json', dict(scaling_factor='big'), "'scaling_factor' must be float"),
        ('vae/config.json', dict(block_out_channels=8), 'vae cannot be built'),
        ('vae/config.json', dict(latent_channels=0), 'vae cannot be built'),
        ('vae/config.json', dict(down_block_types=['Nonsense']), 'vae cannot be built'),
        ('scheduler/scheduler_config.json', dict(num_train_timesteps=0), 'scheduler cannot be'),
        ('scheduler/scheduler_config.json', dict(num_train_timesteps='1e3'), 'scheduler cannot be'),
        ('scheduler/scheduler_config.json', dict(beta_schedule='steep'), 'scheduler cannot be'),
        ('scheduler/scheduler_config.json', dict(beta_start='low'), 'scheduler cannot be'),
    ],
)  # fmt: skip
def test_entries_of_a_wrong_type_or_value(folder, file, changes, message):
    edit(folder / file, **changes)
    refused(folder, f'{message}.*{REPAIR}')


@pytest.mark.parametrize(
    ('file', 'missing'),
    [
        ('transformer/config.json', 'num_layers'),
        ('transformer/config.json', 'patch_size'),
        ('transformer/config.json', 'in_channels'),
        ('transformer/config.json', 'num_embeds_ada_norm'),
        ('vae/config.json', '_class_name'),
    ],
)
def test_entries_that_are_missing(folder, file, missing):
    edit(folder / file, missing)
    refused(folder, f"{file} is incomplete: it has no '{missing}'. {REPAIR}")


@pytest.mark.parametrize('content', ['', '{"a": ', '[1, 2]', '7', '\x00\x01'])
@pytest.mark.parametrize(
    'file', ['transformer/config.json', 'vae/config.json', 'scheduler/scheduler_config.json']
)
def test_configs_that_are_no_configs(folder, file, content):
    (folder / file).write_text(content)
    refused(folder, f'cannot read {file}')


def test_a_variant_that_one_part_lacks(folder, caplog):
    """As diffusers' pipelines do it: that part is read without, and a line says so."""
    images = torch.rand(1, 3, 32, 32) * 2 - 1
    expected = FrozenDiT.from_pretrained(folder).encode(images)
    for part in ('transformer', 'vae'):
        (folder / part / WEIGHTS).rename(folder / part / WEIGHTS.replace('.s', '.fp16.s'))
        if part == 'vae':
            break
        with caplog.at_level(logging.WARNING):
            dit = FrozenDiT.from_pretrained(dict(model=folder, variant='fp16'))
        assert torch.equal(dit.encode(images), expected)
        assert "vae has no weights of variant='fp16': those without a variant are" in caplog.text
    assert torch.equal(
        FrozenDiT.from_pretrained(dict(model=folder, variant='fp16')).encode(images), expected
    )
    refused(folder, 'holds no weights|cannot be built', variant='fp61')


def test_a_variant_that_no_part_has(folder):
    refused(folder, "no part has weights of variant='fp61': leave it out", variant='fp61')


def test_names_that_leave_the_package():
    for name in ('mmaselect://../x', 'mmaselect:///etc', 'mmaselect://', 'mmaselect://a/b'):
        with pytest.raises(FileNotFoundError, match=r'pretrained=.* does not ship with mmaselect'):
            FrozenDiT.from_pretrained(name)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(load_kwargs='abc'), "load_kwargs must be a dict with text keys; got 'abc'"),
        (dict(load_kwargs=dict(dtpye=1)), r"load_kwargs has unknown keys \['dtpye'\]: it takes"),
        (dict(features='q'), r"choose from query, .*\. Is 'query' meant\?"),
        (dict(token=5), 'token must be str or bool, got 5'),
        (dict(blocks='1'), "blocks must be block numbers, .* got '1'"),
        (dict(features=3), 'feature must be one or more of query, key'),
        (dict(dtype='fp8'), "dtype 'fp8' is not supported"),
    ],
)
def test_arguments(tiny_dit, options, message):
    with pytest.raises(ValueError, match=message):
        source, others = described(tiny_dit, options)
        FrozenDiT.from_pretrained(source, **others)
