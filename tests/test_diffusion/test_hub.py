# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""The hub, with a server on this machine in its place: right, silent, slow, and refusing."""

import json
import logging
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hub_server import serve
from huggingface_hub import constants

from mmaselect.diffusion import FrozenDiT
from mmaselect.diffusion import hub as hub_module


@pytest.fixture
def server(monkeypatch, tiny_latent_dit, tmp_path):
    """The hub of this process. Its cache is empty."""
    running = serve(monkeypatch, tmp_path / 'hub')
    folder = Path(shutil.copytree(tiny_latent_dit, tmp_path / 'published'))
    index = dict(
        _class_name='DiTPipeline',
        transformer=['diffusers', 'DiTTransformer2DModel'],
        scheduler=['diffusers', 'DDPMScheduler'],
        vae=['diffusers', 'AutoencoderKL'],
    )
    (folder / 'model_index.json').write_text(json.dumps(index))
    (folder / 'transformer' / 'other.msgpack').write_bytes(b'x' * 100_000)
    running.folders['some/model'] = folder
    yield running
    hub_module._listing.cache_clear()
    running.close()


def read(model, **options):
    dit = FrozenDiT.from_pretrained(dict(model=model, **options), blocks=2)
    torch.manual_seed(0)
    latent = dit.encode(torch.rand(1, 3, 32, 32))
    return dit.features(latent, 300, torch.randn_like(latent))[2, 'query']


def forget():
    hub_module._listing.cache_clear()


@pytest.mark.parametrize('answer', ['right', 'slow'])
def test_a_model_is_downloaded_once(server, tiny_latent_dit, tmp_path, caplog, answer):
    server.answer = answer
    expected = read(tiny_latent_dit)
    with caplog.at_level(logging.INFO):
        assert torch.equal(read('some/model'), expected)
    lines = [r.message for r in caplog.records if 'downloading transformer/ ' in r.message]
    assert len(lines) == 1
    assert '(2 files, ' in lines[0]
    assert 'kB) to ' in lines[0]
    assert str(tmp_path / 'hub') in lines[0]
    assert not any('msgpack' in request for request in server.requests)
    # From now on the hub may be silent: nobody asks.
    server.answer = 'silent'
    server.requests.clear()
    forget()
    started = time.monotonic()
    assert torch.equal(read('some/model'), expected)
    assert not server.requests
    assert time.monotonic() - started < 20


def test_parts_of_two_repositories(server, tiny_latent_dit, tmp_path):
    """A transformer alone, and its base: what is known to be missing is not asked for again."""
    shutil.copytree(Path(tiny_latent_dit, 'transformer'), tmp_path / 'alone')
    server.folders['some/transformer'] = tmp_path / 'alone'
    (tmp_path / 'alone' / 'huge.safetensors').write_bytes(b'x')
    options = dict(model='some/transformer', base='some/model', vae='some/model')
    expected = read(tiny_latent_dit)
    assert torch.equal(read(**options), expected)
    assert not any('huge' in request for request in server.requests)
    server.answer = 'silent'
    server.requests.clear()
    forget()
    assert torch.equal(read(**options), expected)
    assert not server.requests


def test_shards_and_variants(server, tiny_latent_dit, caplog):
    folder = server.folders['some/model'] / 'transformer'
    from diffusers import DiTTransformer2DModel

    model = DiTTransformer2DModel.from_pretrained(folder)
    (folder / 'diffusion_pytorch_model.safetensors').unlink()
    model.save_pretrained(folder, variant='fp16', max_shard_size='20KB')
    assert len([*folder.glob('*-of-*')]) > 2
    with pytest.raises(
        ValueError, match=r'transformer/ has weights of variant fp16 alone: set var'
    ):
        read('some/model')
    expected = read(tiny_latent_dit)

    def check(**options):
        # Weights at other places of a file are rounded otherwise.
        assert torch.allclose(read('some/model', variant='fp16', **options), expected, atol=1e-5)

    check()
    server.answer = 'silent'
    forget()
    # The VAE has no such variant: that takes a look, and 1 s here.
    check()
    assert 'what is in the cache is read' in caplog.text
    check(local_files_only=True)
    # A shard that is not there.
    cached = next(Path(constants.HF_HUB_CACHE).rglob('*-00002-of-*.safetensors'))
    cached.unlink()
    with pytest.raises(FileNotFoundError, match='local_files_only=True forbids the network'):
        read('some/model', variant='fp16', local_files_only=True)
    server.answer = 'right'
    forget()
    check()


@pytest.mark.parametrize(
    ('answer', 'message'),
    [
        ('silent', r'did not answer within 1 s, and the file is not in the cache'),
        (401, r"answered 401: there is no public model 'some/model'.*hf auth login"),
        (
            'gated',
            r'the model is gated: accept its license on http.*/some/model, then run',
        ),
        (404, r"there is no model 'some/model' on http"),
        (503, r'answered 503: try again later'),
    ],
)
def test_one_cause(server, answer, message):
    server.answer = answer
    started = time.monotonic()
    with pytest.raises(FileNotFoundError, match=message) as caught:
        read('some/model')
    assert time.monotonic() - started < 20
    assert len(server.requests) == 1, 'one answer, or none, is enough'
    text = str(caught.value)
    assert "pretrained='some/model'" in text
    causes = ('did not answer', 'gated', 'hub answered', 'answered 5', 'there is no model')
    assert sum(cause in text for cause in causes) == 1


def test_other_causes(server, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"it has no revision 'no-such'"):
        read('some/model', revision='no-such')
    with pytest.raises(FileNotFoundError, match=r"there is no model 'some/other'"):
        read('some/other')
    (server.folders['some/model'] / 'scheduler' / 'scheduler_config.json').unlink()
    with pytest.raises(FileNotFoundError, match=r'scheduler_config\.json: the repository has no'):
        read('some/model')
    forget()
    with pytest.raises(FileNotFoundError, match=r'local_files_only=True forbids'):
        read('some/new', local_files_only=True)
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    with pytest.raises(FileNotFoundError, match=r'HF_HUB_OFFLINE=1 forbids the network. Unset it'):
        read('some/new')
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
    server.close()
    with pytest.raises(FileNotFoundError, match=r'cannot be reached, and the file is not in the c'):
        read('some/new')


def test_a_lora(server, tiny_latent_dit, tmp_path):
    """Its config comes along: without it the strength would be another."""
    import safetensors.torch
    from diffusers import DiTTransformer2DModel

    folder = tmp_path / 'lora'
    folder.mkdir()
    stock = DiTTransformer2DModel.from_pretrained(tiny_latent_dit, subfolder='transformer')
    name = 'transformer_blocks.0.attn1.to_q'
    down, up = torch.randn(2, 16), torch.randn(16, 2)
    safetensors.torch.save_file(
        {f'{name}.lora_A.weight': down, f'{name}.lora_B.weight': up},
        folder / 'adapter_model.safetensors',
    )
    (folder / 'adapter_config.json').write_text(json.dumps(dict(r=2, lora_alpha=6)))
    server.folders['some/lora'] = folder
    for answer in ('right', 'silent'):
        server.answer = answer
        forget()
        source = dict(model=tiny_latent_dit, lora='some/lora')
        dit = FrozenDiT.from_pretrained(source, blocks=1)
        expected = stock.state_dict()[f'{name}.weight'] + 3 * up @ down
        found = dit.transformer.state_dict()[f'{name}.weight']
        assert (found - expected).abs().max() < 1e-5


def test_a_command_ends_with_a_silent_hub(server, tmp_path):
    """As a user has it: another process, the variables of the environment, all files cached."""
    read('some/model')
    server.answer = 'silent'
    code = (
        'from mmaselect import FrozenDiT; '
        "FrozenDiT.from_pretrained('some/model', blocks=1); print('done')"
    )
    variables = dict(HF_ENDPOINT=server.url, HF_HUB_CACHE=str(tmp_path / 'hub'), HF_HUB_OFFLINE='0')
    started = time.monotonic()
    run = subprocess.run(
        [sys.executable, '-c', code],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert 'done' in run.stdout, run.stderr[-2000:]
    assert time.monotonic() - started < 60  # most of it is imports
