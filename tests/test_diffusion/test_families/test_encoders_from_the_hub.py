# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Text encoders that lie elsewhere come through the package's own way to the hub, too."""

import json
import logging
import time
from pathlib import Path

import pytest
import test_flux3
import test_hidream
import torch
from hub_server import serve

from mmaselect.diffusion import FrozenDiT
from mmaselect.diffusion import hub as hub_module


@pytest.fixture
def server(monkeypatch, tmp_path):
    running = serve(monkeypatch, tmp_path / 'hub')
    yield running
    hub_module._listing.cache_clear()
    running.close()


def condition(dit):
    return {name: value for name, value in dit.named_buffers() if name.startswith('condition_')}


def flux3(server, tmp_path):
    folder = tmp_path / 'published'
    test_flux3.TestFlux3().build(folder)
    # As it is published: the index names the repository.
    index = folder / 'modular_model_index.json'
    index.write_text(index.read_text().replace(json.dumps(str(folder)), '"some/model"'))
    assert '"some/model"' in index.read_text()
    server.folders['some/model'] = folder
    return {}, folder, 'text_encoder/'


def hidream(server, tmp_path):
    folder = tmp_path / 'published'
    proof = test_hidream.TestHiDreamWithLlamaElsewhere()
    proof.build(folder)
    llama = Path(proof.condition['llama']).rename(tmp_path / 'llama')
    server.folders.update({'some/model': folder, 'some/llama': llama})
    return dict(condition=dict(llama='some/llama')), folder, 'the model'


@pytest.mark.parametrize('publish', [flux3, hidream])
def test_text_encoders_are_downloaded_once(server, tmp_path, monkeypatch, caplog, publish):
    torch.manual_seed(0)
    options, _, part = publish(server, tmp_path)
    monkeypatch.setenv('MMASELECT_CACHE', str(tmp_path / 'first'))
    with caplog.at_level(logging.INFO):
        expected = condition(FrozenDiT.from_pretrained('some/model', blocks=0, **options))
    assert f'downloading {part} (' in caplog.text
    # Embedded once more, with a hub that never answers: all is in its cache, and nobody asks.
    monkeypatch.setenv('MMASELECT_CACHE', str(tmp_path / 'second'))
    server.answer = 'silent'
    server.requests.clear()
    hub_module._listing.cache_clear()
    started = time.monotonic()
    found = condition(FrozenDiT.from_pretrained('some/model', blocks=0, **options))
    assert time.monotonic() - started < 20
    assert not server.requests
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_a_llama_that_is_not_there_has_one_cause(server, tmp_path):
    torch.manual_seed(0)
    hidream(server, tmp_path)
    del server.folders['some/llama']
    with pytest.raises(FileNotFoundError, match=r"llama='some/other'.*there is no model"):
        FrozenDiT.from_pretrained('some/model', blocks=0, condition=dict(llama='some/other'))
