# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
import json
import shutil

import pytest
import safetensors.torch
import torch

from mmaselect.diffusion import FrozenDiT


def test_missing_folder():
    with pytest.raises(FileNotFoundError, match=r'no such folder.*hub id'):
        FrozenDiT.from_pretrained('./no/such/folder')


def test_folder_that_is_no_pipeline(photos):
    with pytest.raises(ValueError, match=r'not a pipeline folder: it has no transformer/config'):
        FrozenDiT.from_pretrained(photos)


def test_unknown_shipped_model():
    with pytest.raises(FileNotFoundError, match='does not ship with mmaselect'):
        FrozenDiT.from_pretrained('mmaselect://no_such_model')


def edit_config(folder, **changes):
    path = folder / 'transformer' / 'config.json'
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_unknown_transformer_class(tiny_dit, tmp_path):
    folder = shutil.copytree(tiny_dit, tmp_path / 'unknown')
    edit_config(folder, _class_name='MyTransformer2DModel')
    with pytest.raises(ValueError, match=r"'MyTransformer2DModel' is not supported.*DiTTransf"):
        FrozenDiT.from_pretrained(folder)


def test_legacy_class_name_of_published_dits(tiny_dit, tmp_path):
    folder = shutil.copytree(tiny_dit, tmp_path / 'legacy')
    edit_config(folder, _class_name='Transformer2DModel')
    latent, noise = torch.rand(1, 3, 32, 32), torch.randn(1, 3, 32, 32)
    one, two = (FrozenDiT.from_pretrained(path, blocks=1) for path in (tiny_dit, folder))
    assert torch.equal(
        one.features(latent, 3, noise)[1, 'query'], two.features(latent, 3, noise)[1, 'query']
    )


def test_scheduler_missing(tiny_dit, tmp_path):
    folder = shutil.copytree(tiny_dit, tmp_path / 'no_scheduler')
    shutil.rmtree(folder / 'scheduler')
    with pytest.raises(FileNotFoundError, match=r'cannot read scheduler/scheduler_config\.json'):
        FrozenDiT.from_pretrained(folder)


def test_unknown_vae(tiny_latent_dit, tmp_path):
    folder = shutil.copytree(tiny_latent_dit, tmp_path / 'vq')
    path = folder / 'vae' / 'config.json'
    path.write_text(json.dumps({**json.loads(path.read_text()), '_class_name': 'VQModel'}))
    with pytest.raises(ValueError, match=r"'VQModel'.*AutoencoderKL"):
        FrozenDiT.from_pretrained(folder)


def test_weights_that_are_missing_are_an_error(tiny_dit, tmp_path):
    folder = shutil.copytree(tiny_dit, tmp_path / 'holes')
    path = folder / 'transformer' / 'diffusion_pytorch_model.safetensors'
    weights = safetensors.torch.load_file(path)
    del weights['transformer_blocks.1.attn1.to_q.weight']
    safetensors.torch.save_file(weights, path, metadata={'format': 'pt'})
    with pytest.raises(RuntimeError, match=r'lacks 1 weights.*blocks.1.attn1.to_q'):
        FrozenDiT.from_pretrained(folder, blocks=3)
    # Block 1 is not needed for block 0.
    FrozenDiT.from_pretrained(folder, blocks=0)


def test_load_kwargs_reach_diffusers(tiny_dit):
    dit = FrozenDiT.from_pretrained(
        dict(model=tiny_dit, load_kwargs=dict(device_map={'': 'cpu'})), blocks=1
    )
    assert dit.transformer.hf_device_map
    with pytest.raises(Exception, match='not_a_device'):
        FrozenDiT.from_pretrained(
            dict(model=tiny_dit, load_kwargs=dict(device_map={'': 'not_a_device'})), blocks=1
        )
