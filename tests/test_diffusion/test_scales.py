# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Every entry of a file of weights is used, or the file is refused; scales of 8 bits are used."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
from diffusers import DiTTransformer2DModel

from mmaselect.diffusion import FrozenDiT

WEIGHTS = 'diffusion_pytorch_model.safetensors'
TO_Q = 'transformer_blocks.1.attn1.to_q'


def read(pretrained, **options):
    dit = FrozenDiT.from_pretrained(pretrained, blocks=2, features=('query', 'output'), **options)
    torch.manual_seed(0)
    latent = dit.encode(torch.rand(1, 3, 32, 32) * 2 - 1)
    return dit, dit.features(latent, 300, torch.randn_like(latent))


def weights_in(folder):
    return safetensors.torch.load_file(Path(folder, 'transformer', WEIGHTS))


def write(folder, weights, out, layout='folder', entries=None):
    """A pipeline's folder with other weights: in one file, or in shards."""
    shutil.copytree(folder, out)
    transformer = out / 'transformer'
    (transformer / WEIGHTS).unlink()
    if entries:
        config = json.loads((transformer / 'config.json').read_text())
        (transformer / 'config.json').write_text(json.dumps({**config, **entries}))
    if layout == 'folder':
        safetensors.torch.save_file(weights, transformer / WEIGHTS, {'format': 'pt'})
        return out
    places = {}
    for number in (0, 1):
        name = WEIGHTS.replace('.', f'-0000{number + 1}-of-00002.', 1)
        part = dict(sorted(weights.items())[number::2])
        safetensors.torch.save_file(part, transformer / name, {'format': 'pt'})
        places |= dict.fromkeys(part, name)
    index = {'metadata': {}, 'weight_map': places}
    (transformer / f'{WEIGHTS}.index.json').write_text(json.dumps(index))
    return out


def quantized(weights, kind, rows):
    """Two-dimensional weights in 8 bits: the stored ones by name, scales by layer, true values."""
    stored, scales, exact = {}, {}, {}
    for name, value in weights.items():
        stored[name] = exact[name] = value
        # Few enough that features stay finite without the scales.
        if value.ndim != 2 or not name.endswith(('to_q.weight', 'to_out.0.weight')):
            continue
        top = 127 if kind == torch.int8 else torch.finfo(kind).max
        scale = value.abs().amax(1) / top if rows else value.abs().max() / top
        scaled = value / (scale[:, None] if rows else scale)
        stored[name] = (scaled.round() if kind == torch.int8 else scaled).to(kind)
        scales[name.removesuffix('.weight')] = scale
        exact[name] = stored[name].float() * (scale[:, None] if rows else scale)
    return stored, scales, exact


def error(found, expected):
    return max(
        float((found[key] - expected[key]).norm() / expected[key].norm()) for key in expected
    )


@pytest.mark.parametrize('layout', ['folder', 'shards', 'file'])
@pytest.mark.parametrize(
    ('kind', 'rows', 'spelling'),
    [
        (torch.float8_e4m3fn, False, 'weight_scale'),
        (torch.float8_e4m3fn, True, 'weight_scale_inv'),
        (torch.float8_e5m2, False, 'scale_weight'),
        (torch.int8, True, 'weight.scale'),
        (torch.int8, False, 'scale'),
    ],
)
def test_scales_are_applied(tiny_latent_dit, tmp_path, kind, rows, spelling, layout):
    stored, scales, exact = quantized(weights_in(tiny_latent_dit), kind, rows)
    for layer, scale in scales.items():
        stored[f'{layer}.{spelling}'] = scale[:, None] if rows and layout == 'shards' else scale
        stored[f'{layer}.input_scale'] = torch.tensor(0.1)
    expected = read(write(tiny_latent_dit, exact, tmp_path / 'exact'))
    if layout == 'file':
        safetensors.torch.save_file(stored, tmp_path / 'x.safetensors')
        found = read(tmp_path / 'x.safetensors', base=tiny_latent_dit)
    else:
        found = read(write(tiny_latent_dit, stored, tmp_path / 'x', layout))
    assert error(found[1], expected[1]) < 1e-5
    weights, other = (dit.transformer.state_dict() for dit, _ in (found, expected))
    assert all(torch.equal(weights[name], other[name]) for name in other)
    # Without the scales the features are something else altogether.
    bare = {name: value.float() for name, value in stored.items() if name in exact}
    assert error(read(write(tiny_latent_dit, bare, tmp_path / 'bare'))[1], expected[1]) > 1


def test_scales_in_half_precision(tiny_latent_dit, tmp_path):
    stored, scales, exact = quantized(weights_in(tiny_latent_dit), torch.float8_e4m3fn, False)
    stored |= {f'{layer}.weight_scale': scale for layer, scale in scales.items()}
    found = read(write(tiny_latent_dit, stored, tmp_path / 'x'), dtype='bf16')
    expected = read(write(tiny_latent_dit, exact, tmp_path / 'exact'), dtype='bf16')
    for name, value in expected[0].transformer.state_dict().items():
        assert torch.equal(found[0].transformer.state_dict()[name], value), name


def describe(**entries):
    return torch.tensor(list(json.dumps(entries).encode()), dtype=torch.uint8)


@pytest.mark.parametrize(
    ('entries', 'message'),
    [
        ({'weight_scale': torch.ones(4, 4)}, r'weight_scale has the shape \(4, 4\)'),
        ({'weight_scale': torch.ones(3)}, r'weight_scale has the shape \(3,\)'),
        ({'weight_scale': torch.zeros(1)}, 'holds zeros or is not finite'),
        ({'weight_scale': torch.tensor(torch.inf)}, 'holds zeros or is not finite'),
        ({'weight_scale': torch.tensor(900.0)}, 'which no model has: the scale seems to be one'),
        (
            {'weight_scale': torch.ones(1), 'scale_weight': torch.ones(1)},
            'more than one scale',
        ),
        ({}, r'whole numbers \(int8\) and has no scale'),
        (
            {'weight_scale': torch.ones(1), 'comfy_quant': describe(format='nvfp4')},
            'describes a layout that is not read',
        ),
        (
            {
                'weight_scale': torch.ones(1),
                'comfy_quant': describe(format='int8_tensorwise', convrot=True),
            },
            'describes a layout that is not read',
        ),
        ({'weight_scale': torch.ones(1), 'weight_zero_point': torch.ones(1)}, 'weight_zero_point'),
    ],
)
@pytest.mark.parametrize('layout', ['folder', 'shards', 'file'])
def test_scales_that_are_not_read(tiny_latent_dit, tmp_path, entries, message, layout):
    weights = weights_in(tiny_latent_dit)
    weights[f'{TO_Q}.weight'] = torch.full((16, 16), 100, dtype=torch.int8)
    weights |= {f'{TO_Q}.{name}': value for name, value in entries.items()}
    options = {}
    if layout == 'file':
        given = tmp_path / 'x.safetensors'
        safetensors.torch.save_file(weights, given)
        options = dict(base=tiny_latent_dit)
    else:
        given = write(tiny_latent_dit, weights, tmp_path / 'x', layout)
    with pytest.raises(ValueError, match=message) as caught:
        read(given, **options)
    assert str(given) in str(caught.value)


@pytest.mark.parametrize('layout', ['folder', 'shards', 'file', 'prefixed'])
@pytest.mark.parametrize(
    'name',
    [
        f'{TO_Q}.weight_scale',
        f'{TO_Q}.weight._scale',
        f'{TO_Q}.lora_A.default.weight',
        'transformer_blocks.0.norm9.weight',
        'extra_embedder.weight',
    ],
)
def test_entries_that_nothing_takes(tiny_latent_dit, tmp_path, name, layout):
    weights = weights_in(tiny_latent_dit) | {name: torch.ones(1)}
    options = {}
    if layout in ('file', 'prefixed'):
        prefix = 'model.diffusion_model.' if layout == 'prefixed' else ''
        given = tmp_path / 'x.safetensors'
        safetensors.torch.save_file({f'{prefix}{k}': v for k, v in weights.items()}, given)
        options = dict(base=tiny_latent_dit)
    else:
        given = write(tiny_latent_dit, weights, tmp_path / 'x', layout)
    with pytest.raises(ValueError, match=f'takes no {name}') as caught:
        read(given, **options)
    assert str(given) in str(caught.value)


@pytest.mark.parametrize('layout', ['folder', 'file'])
def test_entries_of_blocks_that_are_not_built(tiny_latent_dit, tmp_path, layout):
    weights = weights_in(tiny_latent_dit) | {
        'transformer_blocks.4.attn1.to_q.weight_scale': torch.ones(1),
        'transformer_blocks.77.odd': torch.ones(1),
        'caption_projection.y_embedding': torch.ones(1),
    }
    if layout == 'file':
        safetensors.torch.save_file(weights, tmp_path / 'x.safetensors')
        found = read(tmp_path / 'x.safetensors', base=tiny_latent_dit)
    else:
        found = read(write(tiny_latent_dit, weights, tmp_path / 'x'))
    assert error(found[1], read(tiny_latent_dit)[1]) < 1e-5


def test_a_vae_with_entries_that_nothing_takes(tiny_latent_dit, tmp_path):
    folder = shutil.copytree(tiny_latent_dit, tmp_path / 'x')
    file = folder / 'vae' / WEIGHTS
    weights = safetensors.torch.load_file(file)
    # Nothing reads the decoder.
    more = {'decoder.odd.weight': torch.ones(1)}
    safetensors.torch.save_file(weights | more, file, {'format': 'pt'})
    read(folder)
    more = {'encoder.conv_in.weight_scale': torch.ones(1)}
    safetensors.torch.save_file(weights | more, file, {'format': 'pt'})
    with pytest.raises(ValueError, match=r'vae: AutoencoderKL takes no encoder\.conv_in\.weight_s'):
        read(folder)


# -- files that are not what they seem ------------------------------------------------------------
def test_a_folder_with_a_variant_alone(tiny_latent_dit, tmp_path):
    folder = shutil.copytree(tiny_latent_dit, tmp_path / 'x')
    model = DiTTransformer2DModel.from_pretrained(folder, subfolder='transformer')
    (folder / 'transformer' / WEIGHTS).unlink()
    model.save_pretrained(folder / 'transformer', variant='fp16')
    with pytest.raises(ValueError, match=r"variant fp16 alone: set variant='fp16'"):
        read(folder)
    assert error(read(folder, variant='fp16')[1], read(tiny_latent_dit)[1]) < 1e-6


def test_a_pointer_of_git_lfs(tiny_latent_dit, tmp_path):
    folder = shutil.copytree(tiny_latent_dit, tmp_path / 'x')
    pointer = 'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 2698\n'
    for part in ('vae', 'transformer'):
        (folder / part / WEIGHTS).write_text(pointer)
        with pytest.raises(ValueError, match=rf'{part}/{WEIGHTS}. is a git-LFS pointer.*git lfs'):
            read(folder)
    (tmp_path / 'x.safetensors').write_text(pointer)
    with pytest.raises(ValueError, match=r'x\.safetensors. is a git-LFS pointer'):
        read(tmp_path / 'x.safetensors', base=tiny_latent_dit)


@pytest.mark.parametrize(
    ('method', 'message'),
    [
        (dict(quant_method='bitsandbytes', load_in_8bit=True), 'bitsandbytes.*cannot be read here'),
        (dict(quant_method='quanto', weights_dtype='int8'), 'quanto.* not installed|pip install'),
        (dict(quant_method='no_such_method'), "'no_such_method', which cannot be read here"),
    ],
)
def test_weights_that_a_package_must_read(tiny_latent_dit, tmp_path, method, message):
    if torch.cuda.is_available() or importlib.util.find_spec('optimum'):
        pytest.skip('what reads them is here')
    entries = dict(quantization_config=method)
    weights = weights_in(tiny_latent_dit)
    folder = write(tiny_latent_dit, weights, tmp_path / 'x', entries=entries)
    with pytest.raises((ValueError, ImportError), match=message) as caught:
        read(folder)
    assert str(folder) in str(caught.value)
