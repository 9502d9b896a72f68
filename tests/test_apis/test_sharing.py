# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""A pick that one person saves, or puts on the hub, is read by another at the same place."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from huggingface_hub import constants

from mmaselect import (
    ASelecTDiT,
    FeatureExtractor,
    FeaturesOnly,
    SelectionResult,
    TransformersBackbone,
    select,
)
from mmaselect.selection.provenance import command_line

MODEL = 'mmaselect://dit_cifar10'


@pytest.fixture(scope='module')
def images():
    return list(np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8))


@pytest.fixture(scope='module')
def result(images):
    return select(MODEL, images, timesteps=[0, 400], blocks=[1], cache=False, progress=False)


@pytest.fixture(scope='module')
def saved(result, tmp_path_factory):
    extract = FeatureExtractor(MODEL, result, blocks=[1], seed=3)
    folder = tmp_path_factory.mktemp('shared') / 'pick'
    files = extract.save_pretrained(folder)
    assert {path.name for path in files} == {'config.json', 'README.md', 'selection.json'}
    assert sum(path.stat().st_size for path in files) < 20_000
    return folder


def test_a_result_says_where_it_comes_from(result, images, tmp_path):
    origin = result.provenance
    assert origin['model'] == {'model': MODEL} and origin['dtype'] == 'float32'
    assert origin['images'] == {'source': 'images in memory', 'count': 4, 'used': 4}
    assert origin['versions']['torch'] == torch.__version__
    again = SelectionResult.load(result.save(tmp_path / 'selection.json'))
    assert again == result and again.provenance == origin
    torch.save(result.to_dict(), tmp_path / 'result.pth')
    assert torch.load(tmp_path / 'result.pth', weights_only=True) == result.to_dict()
    # Not a part of the key: the same pick from another command is found.
    assert 'provenance' not in result.settings


def test_a_command_has_no_token():
    words = ['/usr/bin/mmaselect', 'select', 'token=hf_abcdefgh12345']
    assert command_line(words) == "mmaselect select 'token=hf_***'"
    secret = ['https://me:word@host/a.zip', 's3://key:word@store/b', 'https://h/c.png?X-Sign=abc']
    said = command_line(['/x/mmaselect/__main__.py', 'select', *secret])
    assert said.startswith('python -m mmaselect select ')
    assert 'word' not in said and 'abc' not in said and 'key' not in said
    assert 'host/a.zip' in said and 'store/b' in said and 'h/c.png' in said


def test_a_result_in_a_notebook(result):
    assert repr(result).startswith(f'SelectionResult(timestep {result.timestep} (')
    assert len(repr(result)) < 200
    page = result._repr_html_()
    assert MODEL in page and '<svg' in page and str(result.warnings[0]) in page
    assert result._repr_html_() == page  # outputs of notebooks are compared by version control
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    assert result.plot(axes) is axes
    assert any(list(line.get_xdata()) == [result.timestep] for line in axes.lines)


def test_a_config_snippet_is_a_config(result):
    config = eval(result.config_snippet().removeprefix('backbone='))
    assert config == dict(
        type='mmaselect.ASelecTDiT',
        pretrained=MODEL,
        blocks=[1],
        feature='query',
        timestep=result.timestep,
    )


def test_every_face_reads_a_saved_pick_alike(saved, result, images):
    extract = FeatureExtractor.from_pretrained(saved)
    assert extract.selection_result == result and extract.timestep == result.timestep
    expected = FeatureExtractor(MODEL, result.timestep, blocks=[1], seed=3)(images[0])[1, 'query']
    assert torch.equal(extract(images[0])[1, 'query'], expected)
    pixels = torch.from_numpy(images[0]).permute(2, 0, 1)[None] / 127.5 - 1
    assert torch.equal(FeaturesOnly.from_pretrained(saved)(pixels)[0], expected)
    backbone = TransformersBackbone.from_pretrained(saved)
    assert torch.equal(backbone(pixels).feature_maps[0], expected)
    model = ASelecTDiT.from_pretrained(saved).eval()
    assert torch.equal(model(pixels)[0], expected) and model.selection_result == result
    assert model.shared_pick() == extract.shared_pick()


def test_auto_backbone_knows_the_config(saved, images):
    transformers = pytest.importorskip('transformers')
    config = transformers.AutoConfig.from_pretrained(saved)
    assert config.out_features == ['block1']
    backbone = transformers.AutoBackbone.from_config(config)
    assert type(backbone) is TransformersBackbone
    again = transformers.AutoBackbone.from_config(backbone.config)
    pixels = torch.zeros(1, 3, 32, 32)
    assert torch.equal(again(pixels).feature_maps[0], backbone(pixels).feature_maps[0])


def test_what_is_no_pick_is_said(saved, tmp_path):
    with pytest.raises(ValueError, match=r'it has no config\.json'):
        FeatureExtractor.from_pretrained(tmp_path)
    (tmp_path / 'config.json').write_text('{"model_type": "vit"}')
    with pytest.raises(ValueError, match="its model_type is 'vit'"):
        FeatureExtractor.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match='blocks is part of the pick'):
        FeatureExtractor.from_pretrained(saved, blocks=[2])
    config = json.loads((saved / 'config.json').read_text())
    (tmp_path / 'config.json').write_text(json.dumps(dict(config, pretrained=dict(
        model='mmaselect://dit_digits'))))  # fmt: skip
    (tmp_path / 'selection.json').write_text((saved / 'selection.json').read_text())
    with pytest.raises(ValueError, match='another model'):
        FeatureExtractor.from_pretrained(tmp_path)


def test_a_model_of_this_machine_is_not_pushed(tiny_latent_dit):
    extract = FeatureExtractor(tiny_latent_dit, 100)
    with pytest.raises(ValueError, match='is on this machine only'):
        extract.push_to_hub('somebody/pick')


def test_what_is_pushed_is_what_is_saved(saved, monkeypatch):
    received = []

    class Hub(BaseHTTPRequestHandler):
        """Takes what ``huggingface_hub`` sends."""

        def log_message(self, *args):
            pass

        def answer(self):
            content = self.rfile.read(int(self.headers.get('Content-Length') or 0))
            received.append((self.command, self.path.partition('?')[0], content))
            here = f'{constants.ENDPOINT}/somebody/pick'
            reply = dict(url=here, name='somebody/pick', id='somebody/pick')
            if '/preupload/' in self.path:
                files = [one['path'] for one in json.loads(content)['files']]
                reply = dict(files=[
                    dict(path=path, uploadMode='regular', shouldIgnore=False) for path in files
                ])  # fmt: skip
            elif '/commit/' in self.path:
                reply = dict(commitUrl=f'{here}/commit/1', commitOid='1' * 40, success=True)
            text = json.dumps(reply).encode()
            self.send_response(200)
            self.send_header('Content-Length', str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = answer

    server = ThreadingHTTPServer(('127.0.0.1', 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, 'ENDPOINT', f'http://127.0.0.1:{server.server_port}')
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
    try:
        extract = FeatureExtractor.from_pretrained(saved)
        address = extract.push_to_hub('somebody/pick', token='hf_test')
        assert address == f'{constants.ENDPOINT}/somebody/pick/commit/1'
    finally:
        server.shutdown()
        server.server_close()
    (commit,) = [content for _, path, content in received if '/commit/' in path]
    entries = [json.loads(line) for line in commit.splitlines()]
    files = {
        one['value']['path']: base64.b64decode(one['value']['content'])
        for one in entries
        if one['key'] == 'file'
    }
    assert files == {path.name: path.read_bytes() for path in saved.iterdir()}


def test_intermediates_in_the_words_of_timm():
    model = FeaturesOnly(MODEL, 75, out_indices=[1, 3])
    pixels = torch.zeros(2, 3, 32, 48)
    shallow, deep = model(pixels)
    last, maps = model.forward_intermediates(pixels)
    assert torch.equal(last, deep) and torch.equal(maps[0], shallow) and len(maps) == 2
    (only,) = model.forward_intermediates(pixels, indices=1, intermediates_only=True)
    assert torch.equal(only, deep)
    (rows,) = model.forward_intermediates(
        pixels, indices=[-5], output_fmt='NLC', intermediates_only=True
    )
    assert torch.equal(rows, shallow.flatten(2).transpose(1, 2))
    found = model.forward_intermediates(pixels, output_dict=True)
    assert torch.equal(found['image_features'], deep) and len(found['image_intermediates']) == 2
    with pytest.raises(ValueError, match=r'block 2 is not read, \[1, 3\] are'):
        model.forward_intermediates(pixels, indices=[2])
    with pytest.raises(ValueError, match='norm: a frozen diffusion transformer has no such thing'):
        model.forward_intermediates(pixels, norm=True)


def test_select_prints_one_json_document(images, tmp_path, capfd, monkeypatch):
    from PIL import Image

    from mmaselect.cli import main
    from mmaselect.logs import logger

    # The command of a process sends messages to stderr for good; other tests listen to them.
    monkeypatch.setattr(logger, 'handlers', list(logger.handlers))

    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f'{number}.png')
    words = ['select', str(tmp_path), '--pretrained', MODEL, '--timesteps', '0:1000:500']
    assert main([*words, '--json', '--quiet', '--out', str(tmp_path / 'out')]) == 0
    printed = json.loads(capfd.readouterr().out)
    assert printed['timestep'] in (0, 500) and len(printed['curve']) == 2
