# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""A prompt is embedded once, and kept."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import diffusers
import pytest
import torch
from safetensors import safe_open

from mmaselect.diffusion import FrozenDiT
from mmaselect.diffusion.condition import cache_folder, cached_embedding

sys.path.insert(0, str(Path(__file__).parent / 'test_families'))

from tiny_sd3 import save_sd3
from tiny_text import clip_encoder


@pytest.fixture(scope='module')
def sd3(tmp_path_factory):
    folder = tmp_path_factory.mktemp('sd3')
    torch.manual_seed(0)
    save_sd3(folder)
    return folder


@pytest.fixture
def loads(monkeypatch):
    """The calls that load text encoders, as they happen."""
    calls = []
    original = diffusers.StableDiffusion3Pipeline.from_pretrained

    def counted(*args, **kwargs):
        calls.append(kwargs)
        return original(*args, **kwargs)

    monkeypatch.setattr(diffusers.StableDiffusion3Pipeline, 'from_pretrained', counted)
    return calls


def embedding(dit):
    return dit.condition_prompt_embeds


def files():
    return sorted(cache_folder().glob('*.safetensors'))


def test_a_second_start_never_loads_the_encoders(sd3, loads):
    first = FrozenDiT.from_pretrained(sd3)
    second = FrozenDiT.from_pretrained(sd3, blocks=[0, -1], features='output')
    assert len(loads) == 1
    assert torch.equal(embedding(first), embedding(second))
    assert len(files()) == 1


@pytest.mark.thorough  # that no encoder is loaded is tested above, without a new interpreter
def test_a_start_without_transformers_reads_the_cache(sd3):
    """No trace of the encoders: the library that implements them cannot even be imported."""
    FrozenDiT.from_pretrained(sd3)
    code = (
        'import sys; sys.modules["transformers"] = sys.modules["peft"] = None\n'
        'from mmaselect.diffusion import FrozenDiT\n'
        f'print(FrozenDiT.from_pretrained({str(sd3)!r}).condition_prompt_embeds.shape)\n'
    )
    ran = subprocess.run(
        [sys.executable, '-c', code],
        capture_output=True,
        text=True,
        env={**os.environ, 'PYTHONPATH': str(Path(__file__).parents[2])},
    )
    assert ran.returncode == 0, ran.stderr
    assert 'torch.Size([1, 264, 32])' in ran.stdout


@pytest.mark.parametrize(
    'change', [{'condition': 'a bird'}, {'condition': {'t5': True}}, {'dtype': 'bf16'}]
)
def test_what_changes_the_embedding_is_embedded_anew(sd3, loads, change):
    FrozenDiT.from_pretrained(sd3)
    FrozenDiT.from_pretrained(sd3, **change)
    assert len(loads) == len(files()) == 2


def test_none_the_empty_prompt_and_the_default_options_are_one(sd3, loads):
    for condition in (None, '', {}, {'prompt': ''}, {'prompt': '', 't5': False}):
        FrozenDiT.from_pretrained(sd3, condition=condition)
    assert len(loads) == 1


def test_other_encoders_are_embedded_anew(tmp_path):
    """Same folder, same configs and sizes, other weights."""
    save_sd3(tmp_path)
    first = embedding(FrozenDiT.from_pretrained(tmp_path))
    encoder = clip_encoder(16, projection=12, seed=77)
    encoder.save_pretrained(tmp_path / 'text_encoder')
    assert not torch.equal(embedding(FrozenDiT.from_pretrained(tmp_path)), first)


def test_the_folder_may_be_moved(sd3, tmp_path, loads):
    FrozenDiT.from_pretrained(sd3)
    moved = tmp_path / 'moved'
    subprocess.run(['cp', '-rp', sd3, moved], check=True)
    FrozenDiT.from_pretrained(moved)
    assert len(loads) == 1


def test_the_cache_file_says_what_it_is(sd3):
    FrozenDiT.from_pretrained(sd3, condition='a/bird')
    (file,) = files()
    assert file.name.startswith('StableDiffusion3Pipeline-a-bird-')
    with safe_open(file, 'pt') as stored:
        identity = json.loads(stored.metadata()['identity'])
    assert (identity['prompt'], identity['options']) == ('a/bird', {'t5': False})


def test_a_damaged_cache_file_is_replaced(sd3, loads, caplog):
    first = embedding(FrozenDiT.from_pretrained(sd3))
    (file,) = files()
    file.write_bytes(file.read_bytes()[:100])
    assert torch.equal(embedding(FrozenDiT.from_pretrained(sd3)), first)
    assert 'the prompt is embedded again' in caplog.text
    FrozenDiT.from_pretrained(sd3)
    assert len(loads) == 2


def test_a_cache_that_cannot_be_written_is_a_warning(tmp_path, monkeypatch, caplog):
    (tmp_path / 'file').write_text('in the way')
    monkeypatch.setenv('MMASELECT_CACHE', str(tmp_path / 'file'))
    stored = cached_embedding('name', {'prompt': ''}, lambda: {'x': torch.ones(1)})
    assert torch.equal(stored['x'], torch.ones(1))
    assert 'set MMASELECT_CACHE to a folder that can be written' in caplog.text


def test_processes_that_start_together_embed_once():
    calls, results = [], []

    def embed():
        calls.append(threading.current_thread())
        return {'x': torch.full((1, 4), float(len(calls)))}

    def start():
        results.append(cached_embedding('name', {'prompt': 'together'}, embed)['x'])

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1
    assert len(results) == 8
    assert all(torch.equal(x, results[0]) for x in results)


def test_no_half_written_file_is_left():
    def fail():
        raise RuntimeError('out of memory')

    with pytest.raises(RuntimeError, match='out of memory'):
        cached_embedding('name', {'prompt': 'fails'}, fail)
    assert not [f for f in cache_folder().iterdir() if f.suffix != '.lock']


def test_unknown_options_are_refused(sd3):
    with pytest.raises(ValueError, match=r"unknown keys \['T5'\].*prompt='', t5=False"):
        FrozenDiT.from_pretrained(sd3, condition={'T5': True})


def test_a_pipeline_without_its_encoders_is_a_clear_error(tmp_path):
    save_sd3(tmp_path)
    for part in ('text_encoder', 'text_encoder_3'):
        for file in (tmp_path / part).iterdir():
            file.unlink()
        (tmp_path / part).rmdir()
    with pytest.raises(RuntimeError, match=r'must be embedded once by StableDiffusion3Pipeline'):
        FrozenDiT.from_pretrained(tmp_path)


def test_t5_need_not_be_there(tmp_path):
    save_sd3(tmp_path)
    for part in ('text_encoder_3', 'tokenizer_3'):
        subprocess.run(['rm', '-r', tmp_path / part], check=True)
    FrozenDiT.from_pretrained(tmp_path)
