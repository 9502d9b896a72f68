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


def test_a_size_that_the_pipeline_does_not_make_is_said(tmp_path):
    found = verify_model(SHIPPED, blocks=1, image_size=48, dtype='fp32')
    assert found['passed']
    said = 'the call of DiTPipeline makes images of 32 pixels alone, and 48 were asked for'
    assert found['against'] == f'the whole transformer (ValueError: {said})'
    with pytest.raises(ValueError, match=said):
        verify_model(SHIPPED, blocks=1, image_size=48, dtype='fp32', against='pipeline')


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


def test_the_tables():
    assert 'No `verify.json` has been handed in yet' in verified_table([])
    files = sorted((ROOT / 'benchmarks' / 'verified').glob('*.json'))
    assert files
    page = (ROOT / 'docs' / 'verified.md').read_text()
    assert verified_table([json.loads(file.read_text()) for file in files]) in page


def test_probes_at_both_picks(tiny_dit, tmp_path, capsys):
    """Bright and dark images, in folders of classes."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    for level, name in enumerate(('dark', 'bright')):
        folder = tmp_path / 'images' / name
        folder.mkdir(parents=True)
        for number in range(12):
            pixels = rng.integers(0, 60, (32, 32, 3)) + 180 * level
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f'{number}.png')
    command = ['verify', tiny_dit, '--dtype', 'fp32', '--blocks', '1', '--out', str(tmp_path)]
    assert main([*command, '--images', str(tmp_path / 'images')]) == 0
    found = json.loads((tmp_path / 'verify.json').read_text())['selection']
    assert {*found} == {'default', 'paper'}
    said = capsys.readouterr().out
    for each in found.values():
        assert 0 <= each['probe']['low'] <= each['probe']['accuracy'] <= 100
        assert f'| {each["probe"]["accuracy"]:.1f} |' in said


def test_the_day_of_the_gpu(tmp_path):
    """It resumes with what is not done, says what differs, and ends in time."""
    script = ROOT / 'benchmarks' / 'gpu_day.sh'
    for name, passed in (('some_model', 'true'), ('bad_model', 'false')):
        (tmp_path / name).mkdir()
        (tmp_path / name / 'verify.json').write_text(f'{{\n  "passed": {passed}\n}}')

    def run(*arguments):
        command = ['bash', script, *arguments, 'some/model', 'bad/model', 'other/model']
        return subprocess.run(command, capture_output=True, text=True, env=os.environ)

    done = run(tmp_path, '0')
    assert done.returncode == 1, done.stderr
    assert done.stdout.splitlines() == [
        'some/model: done before',
        f'bad/model: done before, and it differs: see {tmp_path}/bad_model/log.txt',
        'other/model: no time left; start again for the rest',
    ]
    dry = run('--dry-run', tmp_path, '1')
    assert dry.stdout.splitlines()[-1] == (
        'other/model: would run mmaselect verify other/model --dtype bf16 '
        f'--out {tmp_path}/other_model'
    )
    assert not (tmp_path / 'other_model').exists()


def test_values_that_are_not_finite_are_no_match():
    from mmaselect.apis.pipeline_call import _difference

    one = torch.ones(2, 3)
    broken = one.clone()
    broken[0, 0] = torch.nan
    assert _difference(one, one, 2) == 0.0
    assert _difference(one, broken, 2) == _difference(broken, one, 2) == float('inf')
    assert _difference(broken, broken, 2) == float('inf')
    # A tensor more of ours is no match, either.
    assert _difference([one], [one, one], 2) == float('inf')
