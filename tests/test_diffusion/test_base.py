# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""A transformer alone, with the other parts from another pipeline."""

import shutil
from pathlib import Path

import diffusers
import pytest
import torch
from sources import described

from mmaselect.cli.arguments import add_model_arguments, model_source, new_parser
from mmaselect.diffusion import FrozenDiT, ModelSource


@pytest.fixture
def alone(tiny_latent_dit, tmp_path):
    """A fine-tuned transformer, as ``save_pretrained`` writes it."""
    transformer = diffusers.DiTTransformer2DModel.from_pretrained(
        tiny_latent_dit, subfolder='transformer'
    )
    with torch.no_grad():
        transformer.transformer_blocks[0].attn1.to_q.weight *= 2
    transformer.save_pretrained(tmp_path / 'tuned')
    return tmp_path / 'tuned'


def read(model, **options):
    torch.manual_seed(0)
    dit = FrozenDiT.from_pretrained(described(model, options)[0], blocks=2)
    latent = dit.encode(torch.rand(1, 3, 32, 32))
    return dit.features(latent, 300, torch.randn_like(latent))[2, 'query']


def test_it_equals_the_whole_pipeline(alone, tiny_latent_dit, tmp_path):
    whole = Path(shutil.copytree(tiny_latent_dit, tmp_path / 'whole'))
    shutil.rmtree(whole / 'transformer')
    shutil.copytree(alone, whole / 'transformer')
    expected = read(whole)
    assert torch.equal(read(alone, base=tiny_latent_dit), expected)
    assert not torch.equal(read(tiny_latent_dit), expected)
    # A folder with a transformer/ and nothing else.
    for part in ('scheduler', 'vae'):
        shutil.rmtree(whole / part)
    assert torch.equal(read(whole, base=tiny_latent_dit), expected)


def test_the_parts_of_a_shipped_model(tmp_path):
    transformer = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=3, num_layers=3, sample_size=32
    )
    transformer.save_pretrained(tmp_path)
    assert read(tmp_path, base='mmaselect://dit_cifar10').shape == (1, 16, 16, 16)


def test_without_a_base(alone, tmp_path):
    with pytest.raises(
        ValueError, match=r'not a pipeline folder.*transformer alone, name by base='
    ):
        read(alone)
    (tmp_path / 'lora').mkdir()
    (tmp_path / 'lora' / 'pytorch_lora_weights.safetensors').touch()
    with pytest.raises(ValueError, match=r'If it holds a LoRA'):
        read(tmp_path / 'lora')
    (tmp_path / 'file').mkdir()
    (tmp_path / 'file' / 'x.gguf').touch()
    with pytest.raises(ValueError, match=r'If x\.gguf is what you mean, give the path'):
        read(tmp_path / 'file')


def test_a_base_that_does_not_fit(alone, tiny_dit, tmp_path):
    with pytest.raises(ValueError, match='latents of 4 channels, and PixelCodec gives 3'):
        read(alone, base=tiny_dit)
    with pytest.raises(ValueError, match=r"base='.*tuned' is not a pipeline folder"):
        read(alone, base=alone)
    (tmp_path / 'empty').mkdir()
    with pytest.raises(ValueError, match='is not a pipeline folder'):
        read(tmp_path / 'empty', base=tiny_dit)


def test_damage_names_the_argument(alone, tiny_latent_dit, tmp_path):
    base = Path(shutil.copytree(tiny_latent_dit, tmp_path / 'base'))
    weights = base / 'vae' / 'diffusion_pytorch_model.safetensors'
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"^base='.*base': '.*vae/.*is truncated or damaged"):
        read(alone, base=base)
    weights = alone / 'diffusion_pytorch_model.safetensors'
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"^pretrained='.*tuned': '.*is truncated or damaged"):
        read(alone, base=tiny_latent_dit)


def test_in_a_shell():
    import argparse

    parser = new_parser(argparse.ArgumentParser().add_subparsers(), 'x', 'x', 'x', '')
    add_model_arguments(parser)
    args = parser.parse_args(
        ['--pretrained', 'x', '--base', 'a', '--vae', 'b', '--original', 'sit']
    )
    assert model_source(args) == ModelSource('x', base='a', vae='b', original='sit')
    args.lora_scale = 0.5
    with pytest.raises(ValueError, match='give --lora too'):
        model_source(args)
    args.lora = 'c'
    assert model_source(args).loras == (('c', 0.5),)
