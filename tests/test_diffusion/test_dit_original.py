# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Checkpoints of DiT, SiT and REPA as published: features equal those of the original network."""

import argparse
import re

import pytest
import safetensors.torch
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from original_dit import OriginalDiT, position_table
from sources import described

from mmaselect import ASelecTDiT
from mmaselect.diffusion import FrozenDiT, PipelineSource
from mmaselect.selection.identity import model_identity

FEATURES = ('query', 'key', 'value', 'attention', 'output')
TINY = {'dit': dict(), 'sit': dict(), 'repa': dict(sigma=False)}


def kl_vae(folder, channels=4, scale=0.18215, **changes):
    torch.manual_seed(1)
    vae = AutoencoderKL(
        **{
            'block_out_channels': (8, 8, 8),
            'down_block_types': ['DownEncoderBlock2D'] * 3,
            'up_block_types': ['UpDecoderBlock2D'] * 3,
            'latent_channels': channels,
            'norm_num_groups': 2,
            'scaling_factor': scale,
            **changes,
        }
    )
    vae.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope='module')
def vae(tmp_path_factory):
    return kl_vae(tmp_path_factory.mktemp('vae'))


@pytest.fixture(scope='module', params=['dit', 'sit', 'repa'])
def published(request, tmp_path_factory):
    """Which, the network, and a file as its authors save it."""
    which = request.param
    network = OriginalDiT(**TINY[which])
    folder = tmp_path_factory.mktemp(which)
    weights = network.state_dict()
    if which == 'dit':
        # As on the page of the paper: a bare state dict.
        torch.save(weights, folder / 'DiT-XS-2-64x64.pt')
        return which, network, folder / 'DiT-XS-2-64x64.pt'
    if which == 'repa':
        weights |= {'projectors.0.0.weight': torch.ones(4, 16)}
    arguments = argparse.Namespace(model='SiT-XS/2', image_size=64)
    other = {name: torch.zeros_like(value) for name, value in weights.items()}
    torch.save(
        {'model': other, 'ema': weights, 'opt': {'state': {}}, 'args': arguments},
        folder / '0400000.pt',
    )
    return which, network, folder / '0400000.pt'


def load(which, file, vae, **options):
    options = {'original': {'model': which, 'num_heads': 2}, 'vae': vae, **options}
    source, others = described(file, options)
    return FrozenDiT.from_pretrained(source, **others)


def noisy(which, latent, noise, timestep):
    """As the papers have it: the noisy latent, and the time that the network is told."""
    t = timestep / 1000
    if which == 'dit':
        betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
        signal = (1 - betas).cumprod(0)[timestep]
        return (signal**0.5 * latent + (1 - signal) ** 0.5 * noise).float(), timestep
    return (1 - t) * latent + t * noise, t if which == 'repa' else 1 - t


@pytest.mark.parametrize('timestep', [0, 137, 700, 999])
def test_features_equal_those_of_the_original(published, vae, timestep):
    which, network, file = published
    dit = load(which, file, vae, blocks=[0, 1, 3], features=FEATURES)
    torch.manual_seed(2)
    latent, noise = torch.randn(2, 2, 4, 8, 8).unbind()
    mixed, time = noisy(which, latent, noise, timestep)
    labels = torch.full((2,), 10)  # the null class
    expected = network.features(mixed, torch.tensor([time, time]), labels)
    features = dit.features(latent, timestep, noise)
    assert set(features) == {(block, name) for block in (0, 1, 3) for name in FEATURES}
    for key, value in features.items():
        torch.testing.assert_close(value.flatten(2).mT, expected[key], rtol=1e-4, atol=1e-5)
    if which != 'dit':
        # The other direction, and a time cut down to 0 or 1, are something else by far.
        for wrong in (1 - time, float(round(time))):
            other = network.features(mixed, torch.tensor([wrong, wrong]), labels)[3, 'output']
            if abs(wrong - time) > 0.1:
                assert (other - expected[3, 'output']).abs().max() > 1e-3


def test_a_class_and_half_precision(published, vae):
    which, network, file = published
    latent, noise = torch.randn(2, 1, 4, 8, 8).unbind()
    mixed, time = noisy(which, latent, noise, 300)
    expected = network.features(mixed, torch.tensor([time]), torch.tensor([3]))[2, 'query']
    dit = load(which, file, vae, blocks=2, condition=3)
    exact = dit.features(latent, 300, noise)[2, 'query'].flatten(2).mT
    torch.testing.assert_close(exact, expected, rtol=1e-4, atol=1e-5)
    half = load(which, file, vae, blocks=2, condition=3, dtype='bf16')
    assert {p.dtype for p in half.transformer.parameters()} == {torch.bfloat16}
    rounded = half.features(latent, 300, noise)[2, 'query'].flatten(2).mT.float()
    assert (rounded - expected).abs().max() < 0.05 * expected.abs().max()


def test_only_the_needed_blocks_are_read(published, vae):
    which, network, file = published
    dit = load(which, file, vae, blocks=1)
    assert dit.num_blocks == 4
    assert len(dit.transformer.transformer_blocks) == 2
    sent = load(which, file, vae, blocks=1)
    assert not any(p.is_meta for p in [*dit.parameters(), *dit.buffers()])
    # Loading does not map the file: it may be replaced.
    before = sent.transformer.pos_embed.proj.weight.clone()
    assert torch.equal(before, network.x_embedder.proj.weight)


def test_other_sizes_and_the_backbone(published, vae, photos):
    which, _, file = published
    backbone = ASelecTDiT(
        dict(model=file, original=dict(model=which, num_heads=2), vae=vae),
        blocks=[1, 3],
        calibration=photos,
        selection=dict(timesteps=[100, 400], num_images=4, image_size=32),
    )
    backbone.init_weights()
    assert backbone.timestep in (100, 400)
    assert backbone.stride == 8
    one, two = backbone(torch.rand(1, 3, 64, 40) * 2 - 1)
    assert one.shape == two.shape == (1, 16, 8, 5)


def test_which_of_them_it_is(tmp_path, vae):
    weights = OriginalDiT().state_dict()

    def kind(name, content=weights, **options):
        torch.save(content, tmp_path / name)
        options = {'original': dict(num_heads=2), **options}
        return PipelineSource(dict(model=tmp_path / name, **options)).config('transformer')[
            'original'
        ]

    assert kind('DiT-XL-2-512x512.pt') == 'dit'
    assert kind('SiT-XL-2-256.pt') == 'sit'
    assert kind('my_REPA_SiT.pt') == 'repa'
    assert kind('last.pt', weights | {'projectors.0.0.bias': torch.ones(1)}) == 'repa'
    assert kind('x.pt', {'ema': weights, 'args': argparse.Namespace(model='DiT-S/2')}) == 'dit'
    settings = argparse.Namespace(model='SiT-S/2', enc_type='dinov2-vit-b')
    assert kind('x.pt', {'ema': weights, 'args': settings}) == 'repa'
    with pytest.raises(ValueError, match=r"tells which this is: say original='dit', 'sit' or"):
        kind('0400000.pt')
    assert kind('0400000.pt', original=dict(model='sit', num_heads=2)) == 'sit'
    with pytest.raises(ValueError, match=r"trained by REPA .* original='sit' says otherwise"):
        kind('x.pt', weights | {'projectors.0.0.bias': torch.ones(1)},
             original=dict(model='sit', num_heads=2))  # fmt: skip
    settings = argparse.Namespace(model='SiT-S/2', path_type='GVP')
    with pytest.raises(ValueError, match="trained on the path 'gvp'; only linear"):
        kind('x.pt', {'ema': weights, 'args': settings})


def test_one_file_read_as_two_models_is_two_models(tmp_path, vae):
    torch.save(OriginalDiT().state_dict(), tmp_path / 'x.pt')
    one, two = (
        model_identity(load(which, tmp_path / 'x.pt', vae), [100], 16) for which in ('sit', 'repa')
    )
    assert one != two


def test_the_first_layout_of_repa(tmp_path, vae):
    """Blocks behind the projectors were counted apart."""
    network = OriginalDiT(sigma=False)
    weights = network.state_dict() | {'projectors.0.0.bias': torch.ones(1)}
    first = {}
    for key, value in weights.items():
        found = re.fullmatch(r'blocks\.(\d)\.(.*)', key)
        if found and int(found[1]) > 1:
            key = f'decoder_blocks.{int(found[1]) - 2}.{found[2]}'
        first[key] = value
    assert 'decoder_blocks.1.attn.proj.bias' in first
    torch.save(weights, tmp_path / 'now.pt')
    torch.save(first, tmp_path / 'first.pt')
    latent, noise = torch.randn(2, 1, 4, 8, 8).unbind()
    now, then = (
        load('repa', tmp_path / f'{name}.pt', vae, blocks=3).features(latent, 200, noise)
        for name in ('now', 'first')
    )
    assert torch.equal(now[3, 'query'], then[3, 'query'])


def test_wrapped_names_and_safetensors(tmp_path, vae):
    weights = OriginalDiT().state_dict()
    torch.save({'ema': {f'module.{k}': v for k, v in weights.items()}}, tmp_path / 'DiT.pt')
    safetensors.torch.save_file(weights, tmp_path / 'DiT.safetensors')
    torch.save(weights, tmp_path / 'DiT-old.pt', _use_new_zipfile_serialization=False)
    latent, noise = torch.randn(2, 1, 4, 8, 8).unbind()
    features = [
        load('dit', tmp_path / name, vae).features(latent, 200, noise)[2, 'query']
        for name in ('DiT.pt', 'DiT.safetensors', 'DiT-old.pt')
    ]
    assert torch.equal(features[0], features[1])
    assert torch.equal(features[0], features[2])


class Harmful:
    def __reduce__(self):
        return print, ('this ran',)


def test_a_file_that_could_run_code(tmp_path, vae, capsys):
    torch.save({'ema': OriginalDiT().state_dict(), 'x': Harmful()}, tmp_path / 'DiT.pt')
    with pytest.raises(ValueError, match=r'DiT\.pt.* could run code when read .*state dict alone'):
        load('dit', tmp_path / 'DiT.pt', vae)
    assert 'this ran' not in capsys.readouterr().out


def test_damaged_files(tmp_path, vae):
    torch.save(OriginalDiT().state_dict(), tmp_path / 'DiT.pt')
    whole = (tmp_path / 'DiT.pt').read_bytes()
    for number, content in enumerate((whole[:1000], b'', b'garbage' * 1000)):
        for ending in ('pt', 'safetensors'):
            file = tmp_path / f'DiT{number}.{ending}'
            file.write_bytes(content)
            with pytest.raises(ValueError, match=rf'DiT{number}\.{ending}.* damaged'):
                load('dit', file, vae)
    torch.save([1, 2], tmp_path / 'list.pt')
    with pytest.raises(ValueError, match=r'list\.pt.* holds no tensors by name'):
        load('dit', tmp_path / 'list.pt', vae)


def without(weights, name):
    return {key: value for key, value in weights.items() if key != name}


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda w: w | {'blocks.0.attn.q_norm.weight': torch.ones(8)}, r'has blocks\.\*\.attn\.q'),
        (lambda w: w | {'extra.weight': torch.ones(8)}, 'variant of DiT .*: it has extra.weight'),
        (lambda w: w | {'pos_embed': torch.randn(1, 16, 16)}, 'positions are not the sines'),
        (lambda w: w | {'pos_embed': position_table(4, 16)[:, :15]}, 'positions are not the sines'),
        (lambda w: w | {'blocks.0.mlp.fc1.weight': torch.ones(32, 16)}, 'MLPs are 32 wide'),
        (lambda w: without(w, 'final_layer.linear.weight'), "no 'final_layer.linear.weight'"),
        (lambda w: w | {'blocks.0.mlp.w12.weight': torch.ones(8)}, 'checkpoint of LightningDiT'),
        (lambda w: w | {'decoder_layer.linear.bias': torch.ones(8)}, 'checkpoint of MaskDiT'),
        (
            lambda w: w | {'y_embedder.embedding_table.weight': torch.ones(16, 10)},
            'checkpoint of MaskDiT',
        ),
        (lambda w: w | {'en_inblocks.0.attn.qkv.bias': torch.ones(8)}, 'checkpoint of MDT'),
        (
            lambda w: {
                f'{part}.norm1.bias': torch.ones(8)
                for part in ('in_blocks.0', 'mid_block', 'out_blocks.0')
            },
            'checkpoint of U-ViT',
        ),
        (
            lambda w: {f'{part}.weight': torch.ones(8) for part in ('blocks.0.cross_attn.proj',
                                                                    't_block.1')},
            "PixArt in its original layout.*'PixArt-alpha/",
        ),
    ],
)  # fmt: skip
def test_what_no_class_fits_is_refused_by_name(tmp_path, vae, change, message):
    torch.save(change(OriginalDiT().state_dict()), tmp_path / 'DiT.pt')
    with pytest.raises(ValueError, match=message) as caught:
        load('dit', tmp_path / 'DiT.pt', vae)
    assert str(tmp_path / 'DiT.pt') in str(caught.value)


def test_missing_weights_of_a_needed_block(tmp_path, vae):
    weights = without(OriginalDiT().state_dict(), 'blocks.2.attn.qkv.bias')
    torch.save(weights, tmp_path / 'DiT.pt')
    load('dit', tmp_path / 'DiT.pt', vae, blocks=1)
    with pytest.raises(RuntimeError, match=r"lacks 1 weights .*\['blocks\.2\.attn\.qkv\.bias'\]"):
        load('dit', tmp_path / 'DiT.pt', vae, blocks=3)


def test_pixels_need_no_vae(tmp_path):
    torch.save(OriginalDiT(channels=3).state_dict(), tmp_path / 'SiT.pt')
    dit = FrozenDiT.from_pretrained(dict(model=tmp_path / 'SiT.pt', original=dict(num_heads=2)))
    assert dit.stride == 2
    assert dit.encode(torch.zeros(1, 3, 8, 8)).shape == (1, 3, 8, 8)


def test_the_default_vae_out_of_reach(tmp_path, monkeypatch):
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    torch.save(OriginalDiT().state_dict(), tmp_path / 'SiT.pt')
    with pytest.raises(FileNotFoundError, match=r"vae='stabilityai/sd-vae-ft-ema'.*vae=FOLDER"):
        FrozenDiT.from_pretrained(
            dict(
                model=tmp_path / 'SiT.pt',
                original=dict(num_heads=2),
                local_files_only=True,
                cache_dir=tmp_path / 'hub',
            )
        )


def test_vaes_that_do_not_fit(tmp_path, tiny_latent_dit):
    torch.save(OriginalDiT().state_dict(), tmp_path / 'SiT.pt')
    with pytest.raises(ValueError, match='latents of 16 channels, and SiT takes 4'):
        load('sit', tmp_path / 'SiT.pt', kl_vae(tmp_path / 'wide', channels=16))
    # A pipeline says what its VAE is: 0.5 is the scale, and there are two stages.
    two = {'block_out_channels': (8, 8), 'down_block_types': ['DownEncoderBlock2D'] * 2,
           'up_block_types': ['UpDecoderBlock2D'] * 2}  # fmt: skip
    fits = kl_vae(tmp_path / 'fits', scale=0.5, **two)
    assert FrozenDiT.from_pretrained(dict(model=tiny_latent_dit, vae=fits)).stride == 4
    with pytest.raises(ValueError, match=r'scaling_factor 0\.18215 instead of 0\.5'):
        FrozenDiT.from_pretrained(
            dict(model=tiny_latent_dit, vae=kl_vae(tmp_path / 'scale', **two))
        )
    with pytest.raises(ValueError, match='stride 4 instead of 2'):
        FrozenDiT.from_pretrained(
            dict(model=tiny_latent_dit, vae=kl_vae(tmp_path / 'stride', scale=0.5))
        )


def test_another_vae(tmp_path, tiny_latent_dit):
    """Its latents are read, and it is part of the selection's key; a TAESD is scaled already."""
    two = {'block_out_channels': (8, 8), 'down_block_types': ['DownEncoderBlock2D'] * 2,
           'up_block_types': ['UpDecoderBlock2D'] * 2}  # fmt: skip
    folder = kl_vae(tmp_path / 'vae', scale=0.5, **two)
    tiny = AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    )
    tiny.save_pretrained(tmp_path / 'tiny')
    images = torch.rand(1, 3, 32, 32) * 2 - 1
    own = FrozenDiT.from_pretrained(tiny_latent_dit)
    keys = [model_identity(own, [100], 64)]
    for name in (folder, tmp_path / 'tiny'):
        dit = FrozenDiT.from_pretrained(dict(model=tiny_latent_dit, vae=name))
        keys.append(model_identity(dit, [100], 64))
        if name == folder:
            vae = AutoencoderKL.from_pretrained(folder)
            expected = vae.encode(images).latent_dist.mode() * 0.5
        else:
            expected = tiny.encode(images).latents
        assert torch.equal(dit.encode(images), expected)
    assert not any(key == other for i, key in enumerate(keys) for other in keys[:i])
    (tmp_path / 'empty').mkdir()
    with pytest.raises(ValueError, match='holds no VAE'):
        FrozenDiT.from_pretrained(dict(model=tiny_latent_dit, vae=tmp_path / 'empty'))


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(model='models/x.safetensors'), 'no such file'),
        (dict(model='x.gguf'), 'no such file'),
        (dict(model='org/x.pt'), 'no such file'),
        (dict(model=__file__), 'is a file, and none of weights: it must end in one of .pt,'),
        (
            dict(original='sit'),
            r"original='sit' says what a file of weights holds.* is not such a file",
        ),
        (dict(original=5), 'original'),
        (dict(base='./none'), r"base='./none': there is no such folder"),
        (dict(base='x.pt'), r"base='x.pt': there is no such file"),
        (dict(vae='./none'), r"vae='./none': there is no such folder"),
        (dict(vae='x.safetensors'), r"vae='x.safetensors': there is no such file"),
    ],
)
def test_arguments(arguments, message, tiny_dit):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        FrozenDiT.from_pretrained(dict(model=tiny_dit) | arguments)


def test_a_size_that_is_not_published(tmp_path):
    torch.save(OriginalDiT().state_dict(), tmp_path / 'SiT.pt')
    with pytest.raises(
        ValueError, match=r"16 wide.*original=dict\(model='sit', num_heads=\.\.\.\)"
    ):
        FrozenDiT.from_pretrained(tmp_path / 'SiT.pt')
    for heads in (0, 3, 'x', 2.5):
        with pytest.raises(ValueError, match='heads'):
            FrozenDiT.from_pretrained(
                dict(model=tmp_path / 'SiT.pt', original=dict(num_heads=heads))
            )
