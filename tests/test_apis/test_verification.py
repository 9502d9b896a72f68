# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""``mmaselect verify``: what it compares, what it writes, and that it finds a difference."""

import json
import os
import subprocess
from pathlib import Path

import diffusers
import pytest
import torch

from mmaselect.apis import verification
from mmaselect.apis.verification import verified_table, verify_model
from mmaselect.cli import main

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = 'mmaselect://dit_cifar10'


def test_the_shipped_model(tmp_path, photos, capsys):
    command = ['verify', SHIPPED, '--out', str(tmp_path), '--blocks', '1', '--dtype', 'fp32']
    assert main(command) == 0
    assert f'| {SHIPPED} | ' in capsys.readouterr().out
    found = json.loads((tmp_path / 'verify.json').read_text())
    assert found['passed']
    assert set(found['features'].values()) == {0.0}
    assert len(found['features']) == 2 * 5
    assert found['image_size'] == 32
    assert found['bytes']['features'] < found['bytes']['whole_transformer']
    assert found['seconds']['features'] > 0
    assert found['tflops']['features'] > 0
    assert found['versions']['torch'] == torch.__version__


def test_the_criteria_on_images(tiny_dit, photos):
    found = verify_model(tiny_dit, images=photos, blocks=1, dtype='fp32')
    assert found['selection']['paper']['criterion'] != found['selection']['default']['criterion']
    for each in found['selection'].values():
        assert each['timestep'] in [timestep for timestep, _ in each['curve']]
        assert each['num_images'] == 24


@pytest.mark.parametrize('dtype', ['fp32', 'bf16'])
def test_a_random_model_of_a_published_class(tmp_path, dtype):
    """On latents, in two precisions."""
    from tiny_dit import save_tiny_dit

    folder = save_tiny_dit(tmp_path, latent=True, num_layers=3)
    found = verify_model(folder, dtype=dtype, image_size=48)
    assert found['passed']
    assert {name.split(' block ')[1].split()[0] for name in found['features']} == {'0', '1', '2'}


def test_a_difference_is_found(tiny_dit, monkeypatch, capsys):
    """One weight of one block of what diffusers loads is another."""
    load = verification._stock

    def changed(*args):
        stock = load(*args)
        with torch.no_grad():
            stock.transformer_blocks[2].attn1.to_k.weight[0, 0] += 0.5
        return stock

    monkeypatch.setattr(verification, '_stock', changed)
    assert main(['verify', tiny_dit, '--dtype', 'fp32']) == 1
    captured = capsys.readouterr()
    assert '**different**' in captured.out
    assert 'features differ from those of diffusers' in captured.err
    assert 'block' in captured.err
    found = verify_model(tiny_dit, dtype='fp32')
    wrong = {name for name, error in found['features'].items() if error > found['tolerance']}
    assert not any('block 0' in name for name in wrong)
    assert any('block 3' in name for name in wrong)


def test_what_cannot_be_compared(tmp_path, tiny_latent_dit):
    model = diffusers.DiTTransformer2DModel.from_pretrained(
        tiny_latent_dit, subfolder='transformer'
    )
    import safetensors.torch

    file = tmp_path / 'x.safetensors'
    safetensors.torch.save_file(model.state_dict(), file)
    with pytest.raises(ValueError, match=r'x\.safetensors. cannot be verified'):
        verify_model(dict(model=file, base=tiny_latent_dit))


def test_the_page_says_what_there_is():
    page = (ROOT / 'docs' / 'verified.md').read_text()
    assert page.endswith(verified_table([]))


def test_the_day_of_the_gpu(tmp_path):
    """It goes on with what is not done, and ends in time."""
    script = ROOT / 'benchmarks' / 'gpu_day.sh'
    done = tmp_path / 'some_model'
    done.mkdir()
    (done / 'verify.json').write_text('{}')
    run = subprocess.run(
        ['bash', script, tmp_path, '0', 'some/model', 'other/model'],
        capture_output=True,
        text=True,
        env=os.environ,
    )
    assert run.returncode == 1, run.stderr
    assert run.stdout.splitlines() == [
        'some/model: done before',
        'other/model: no time left; start again for the rest',
    ]
