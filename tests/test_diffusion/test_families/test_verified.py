# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""``mmaselect verify`` on small models with prompts, packed latents and two kinds of blocks.

It compares with the pipeline's own call: its noise, time, prompt, masks and positions.
"""

import diffusers
import pytest
import test_flux
import test_flux2
import test_hunyuan_dit
import test_lumina2
import test_omnigen
import test_pixart
import test_qwen_image
import test_sana
import test_z_image
import torch
from published import published_config
from tiny_sd3 import save_sd3
from tiny_vae import kl_vae

from mmaselect.apis.verification import verify_model
from mmaselect.cli import main
from mmaselect.diffusion.families.sd3 import SD3Family
from mmaselect.diffusion.process import FlowMatchingProcess


def built(module, name):
    return pytest.param(getattr(module, name)().build, id=name.removeprefix('Test'))


#: Models, and what one step of their pipeline cannot be made to have.
OWN = [
    pytest.param(save_sd3, id='SD3'),
    built(test_flux, 'TestFluxDev'),
    built(test_qwen_image, 'TestQwenImage'),
    built(test_sana, 'TestSana15'),
    built(test_pixart, 'TestPixArtSigma'),
    built(test_hunyuan_dit, 'TestHunyuanDiT'),
    built(test_lumina2, 'TestLumina2'),
    built(test_z_image, 'TestZImage'),
]


@pytest.mark.parametrize('build', OWN)
def test_it_equals_the_pipelines_own_call(tmp_path, build):
    torch.manual_seed(0)
    build(tmp_path)
    found = verify_model(tmp_path, dtype='fp32', image_size=64, against='pipeline')
    assert found['passed'], found
    assert found['against'].startswith('the call of ')
    assert found['wrong_inputs'] == found['given_inputs'] == []
    assert len(found['features']) > 20
    assert max(found['features'].values()) < 1e-6
    assert len(found['inputs']) >= 2 * 3  # the latent, the time, the prompt
    assert max(found['inputs'].values()) < 1e-6
    assert found['bytes']['features'] < found['bytes']['whole_transformer']


def test_what_is_given_to_a_call_is_said(tmp_path):
    """The sampler of FLUX.2 shifts its time by the number of steps."""
    torch.manual_seed(0)
    test_flux2.TestFlux2Klein().build(tmp_path)
    found = verify_model(tmp_path, dtype='fp32', image_size=64)
    assert found['passed'], found
    assert found['given_inputs'] == ['timestep']
    # Its single blocks have no module that gives the attention's result alone.
    assert {name.split()[-1] for name in found['not_compared']} == {'attention'}


def test_a_pipeline_whose_call_cannot_be_compared(tmp_path):
    torch.manual_seed(0)
    test_omnigen.TestOmniGen().build(tmp_path)
    found = verify_model(tmp_path, dtype='fp32', image_size=64)
    assert found['passed'], found
    assert found['against'].startswith('the whole transformer (ValueError: it runs the prompt')
    with pytest.raises(ValueError, match=r"cannot be compared .*against='transformer'"):
        verify_model(tmp_path, dtype='fp32', image_size=64, against='pipeline')


@pytest.mark.parametrize('what', ['time', 'prompt'])
def test_a_wrong_input_is_found(tmp_path, monkeypatch, capsys, what):
    """Time that is told in other units, and a prompt that is embedded otherwise."""
    torch.manual_seed(0)
    save_sd3(tmp_path)
    if what == 'time':
        told = FlowMatchingProcess.model_time
        monkeypatch.setattr(
            FlowMatchingProcess, 'model_time', lambda self, sigma: told(self, sigma) / 1000
        )
        wrong = 'timestep'
    else:
        embed = SD3Family.embed
        monkeypatch.setattr(
            SD3Family,
            'embed',
            lambda self, pipeline, prompt, **more: embed(self, pipeline, 'a dog', **more),
        )
        monkeypatch.setenv('MMASELECT_CACHE', str(tmp_path / 'cache'))
        wrong = 'encoder_hidden_states, pooled_projections'
    assert main(['verify', str(tmp_path), '--dtype', 'fp32', '--image-size', '64']) == 1
    said = capsys.readouterr()
    assert '**different**' in said.out
    assert f'gives its transformer other values than we do: {wrong}' in said.err


def test_a_published_config_of_reduced_depth(tmp_path):
    """DiT-XL/2 with two blocks and random weights, next to the call of its pipeline."""
    config = {**published_config('facebook/DiT-XL-2-256'), 'num_layers': 2}
    torch.manual_seed(0)
    diffusers.DiTPipeline(
        transformer=diffusers.DiTTransformer2DModel(**config),
        scheduler=diffusers.DDPMScheduler(beta_schedule='linear'),
        vae=kl_vae(4, scale=0.18215, shift=0.0),
    ).save_pretrained(tmp_path)
    found = verify_model(tmp_path, dtype='bf16', batch_size=1, blocks=[0, 1])
    assert found['passed'], found
    assert found['against'] == 'the call of DiTPipeline'
    assert found['image_size'] == 128  # of this small VAE
    assert set(found['features'].values()) == {0.0}
