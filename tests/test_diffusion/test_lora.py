# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""A LoRA is fused as peft fuses it, whatever its layout; each of its tensors counts."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
from diffusers import DiTTransformer2DModel, FluxTransformer2DModel

from mmaselect.diffusion import FrozenDiT
from mmaselect.diffusion.lora import fuse_lora
from mmaselect.selection.identity import model_identity

peft = pytest.importorskip('peft')
from peft.tuners.tuners_utils import BaseTunerLayer  # noqa: E402

TARGETS = ('attn1.to_q', 'attn1.to_v', 'ff.net.2')
LORA = dict(r=4, lora_alpha=16, target_modules=list(TARGETS))
PATTERNS = dict(rank_pattern={'transformer_blocks.1.attn1.to_q': 2}, alpha_pattern={'ff.net.2': 3})
CONFIGS = {
    'plain': peft.LoraConfig(**LORA),
    'patterns': peft.LoraConfig(**LORA, **PATTERNS),
    'root of rank': peft.LoraConfig(**LORA, use_rslora=True),
    'DoRA': peft.LoraConfig(**LORA, use_dora=True),
    'bias': peft.LoraConfig(**LORA, lora_bias=True),
    'convolution': peft.LoraConfig(r=2, lora_alpha=3, target_modules=['pos_embed.proj']),
    'LoKr': peft.LoKrConfig(r=2, alpha=6, target_modules=list(TARGETS)),
    'LoKr in factors': peft.LoKrConfig(
        r=2, alpha=5, target_modules=list(TARGETS), decompose_both=True, decompose_factor=4
    ),
}


def load(folder):
    return DiTTransformer2DModel.from_pretrained(folder, subfolder='transformer')


def by_peft(folder, config, scale=1.0):
    """Tensors of a random adapter as peft saves them, and the weights that peft merges it to."""
    model = load(folder)
    peft.inject_adapter_in_model(config, model, adapter_name='default')
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if any(part in name for part in ('lora_', 'lokr_')):
                value.copy_(torch.randn(value.shape, generator=generator) * 0.3)
            if 'magnitude' in name:
                value.abs_().add_(0.5)
    tensors = peft.get_peft_model_state_dict(model, adapter_name='default')
    tensors = {f'base_model.model.{name}': value.clone() for name, value in tensors.items()}
    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.scale_layer(scale)
            module.merge(safe_merge=True)
            parent, _, last = name.rpartition('.')
            setattr(model.get_submodule(parent), last, module.get_base_layer())
    return tensors, model.state_dict()


def save(tensors, file, metadata=None):
    file.parent.mkdir(exist_ok=True)
    tensors = {name: value.contiguous() for name, value in tensors.items()}
    safetensors.torch.save_file(tensors, file, metadata)
    return file


def adapter(tensors, config, folder):
    """A folder as peft writes it."""
    save(tensors, folder / 'adapter_model.safetensors')
    config.save_pretrained(folder)
    return folder


def read(folder, block=5, **options):
    return FrozenDiT.from_pretrained(folder, blocks=block, **options)


def assert_fused(dit, expected):
    weights = dit.transformer.state_dict()
    assert type(dit.transformer) is DiTTransformer2DModel
    for name, value in weights.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6, msg=name)
    assert set(weights) == set(expected)


def assert_is_not(expected, folder):
    plain = load(folder).state_dict()
    assert any(not torch.allclose(plain[name], expected[name], atol=1e-3) for name in plain)


@pytest.mark.parametrize('scale', [1.0, -0.5])
@pytest.mark.parametrize('kind', CONFIGS)
def test_it_equals_peft(tiny_latent_dit, tmp_path, kind, scale):
    tensors, expected = by_peft(tiny_latent_dit, CONFIGS[kind], scale)
    assert_is_not(expected, tiny_latent_dit)
    folder = adapter(tensors, CONFIGS[kind], tmp_path / 'adapter')
    for path in (folder, folder / 'adapter_model.safetensors'):
        dit = read(dict(model=tiny_latent_dit, lora=dict(path=path, scale=scale)))
        assert_fused(dit, expected)


LAYOUTS = {
    'peft': lambda name: name,
    'bare': lambda name: name.removeprefix('base_model.model.'),
    'pipeline': lambda name: name.replace('base_model.model.', 'transformer.'),
    'comfy': lambda name: name.replace('base_model.model.', 'diffusion_model.'),
    'adapter name': lambda name: name.replace('.weight', '.default_0.weight'),
    'down and up': lambda name: name.replace('lora_A', 'lora_down').replace('lora_B', 'lora_up'),
    'old': lambda name: name.replace('lora_A', 'lora.down').replace('lora_B', 'lora.up'),
}


@pytest.mark.parametrize('layout', LAYOUTS)
def test_layouts_without_a_config(tiny_latent_dit, tmp_path, layout):
    """Alpha is the rank."""
    config = peft.LoraConfig(**{**LORA, 'lora_alpha': 4})
    tensors, expected = by_peft(tiny_latent_dit, config)
    file = save({LAYOUTS[layout](name): value for name, value in tensors.items()}, tmp_path / 'x')
    file = file.rename(tmp_path / 'x.safetensors')
    assert_fused(read(dict(model=tiny_latent_dit, lora=file)), expected)


@pytest.mark.parametrize('dotted', [True, False])
def test_kohya(tiny_latent_dit, tmp_path, dotted):
    tensors, expected = by_peft(tiny_latent_dit, CONFIGS['plain'])
    named = {}
    for name, value in tensors.items():
        module, _, part = name.removeprefix('base_model.model.').rpartition('.lora_')
        module = module if dotted else 'lora_unet_' + module.replace('.', '_')
        named[f'{module}.lora_{part.replace("A", "down").replace("B", "up")}'] = value
        named[f'{module}.alpha'] = torch.tensor(16.0)
    assert_fused(
        read(dict(model=tiny_latent_dit, lora=save(named, tmp_path / 'x.safetensors'))), expected
    )


def test_alphas_in_the_header_of_the_file(tiny_latent_dit, tmp_path):
    tensors, expected = by_peft(tiny_latent_dit, CONFIGS['patterns'])
    named = {name.replace('base_model.model.', 'transformer.'): v for name, v in tensors.items()}
    entries = {f'transformer.{name}': value for name, value in {**LORA, **PATTERNS}.items()}
    file = save(named, tmp_path / 'x.safetensors', {'lora_adapter_metadata': json.dumps(entries)})
    assert_fused(read(dict(model=tiny_latent_dit, lora=file)), expected)


def test_several(tiny_latent_dit, tmp_path, caplog):
    """Sums of products, worked out here."""
    plain, _ = by_peft(tiny_latent_dit, CONFIGS['plain'])
    other = {name: value * 0.7 for name, value in plain.items()}
    one = adapter(plain, CONFIGS['plain'], tmp_path / 'one')
    two = save(other, tmp_path / 'two' / 'x.safetensors')
    with caplog.at_level(logging.INFO):
        dit = read(dict(model=tiny_latent_dit, lora=[one, dict(path=two, scale=0.5)]), block=1)
    found = dit.transformer.state_dict()
    stock = load(tiny_latent_dit).state_dict()
    for layer in ('transformer_blocks.0.attn1.to_q', 'transformer_blocks.1.ff.net.2'):
        stem = f'base_model.model.{layer}.lora'
        product = plain[f'{stem}_B.weight'] @ plain[f'{stem}_A.weight']
        expected = stock[f'{layer}.weight'] + 4 * product + 0.5 * 0.49 * product
        assert (found[f'{layer}.weight'] - expected).abs().max() < 1e-5
    assert 'strength 4 (alpha / rank) times 1 (scale)' in caplog.text
    assert 'strength 1 (alpha / rank) times 0.5 (scale)' in caplog.text
    assert '12 of the 18 layers that it changes are in blocks that are not read' in caplog.text
    keys = [
        model_identity(model, [100], 16)['weights']
        for model in (dit, read(dict(model=tiny_latent_dit, lora=one), block=1))
    ]
    assert keys[0] != keys[1]


def test_half_precision(tiny_latent_dit, tmp_path):
    """The sum is worked out in float32, and rounded once."""
    tensors, expected = by_peft(tiny_latent_dit, CONFIGS['plain'])
    folder = adapter(tensors, CONFIGS['plain'], tmp_path / 'x')
    stock = {
        name: value.bfloat16().float() for name, value in load(tiny_latent_dit).state_dict().items()
    }
    difference = {
        name: value - load(tiny_latent_dit).state_dict()[name] for name, value in expected.items()
    }
    dit = read(dict(model=tiny_latent_dit, lora=folder), dtype='bf16')
    for name, value in dit.transformer.state_dict().items():
        wanted = (stock[name] + difference[name]).bfloat16()
        assert (value.float() - wanted.float()).abs().max() <= wanted.float().abs().max() / 256


# -- layouts that diffusers converts ---------------------------------------------------------------
@pytest.fixture(scope='module')
def flux():
    torch.manual_seed(0)
    sizes = dict(num_attention_heads=2, attention_head_dim=16, num_layers=2, num_single_layers=1)
    return FluxTransformer2DModel(
        in_channels=4,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        axes_dims_rope=(4, 6, 6),
        **sizes,
    )


def of_kohya(flux, alpha):
    """FLUX.1 in the layout of its authors, under kohya's names: three projections are one."""
    tensors, expected = {}, {}
    generator = torch.Generator().manual_seed(0)
    for index in range(2):
        stem = f'lora_unet_double_blocks_{index}_img_attn_qkv'
        down, up = (torch.randn(s, generator=generator) * 0.3 for s in ((4, 32), (96, 4)))
        tensors |= {f'{stem}.lora_down.weight': down, f'{stem}.lora_up.weight': up}
        tensors[f'{stem}.alpha'] = torch.tensor(float(alpha))
        for part, letter in zip(up.chunk(3), 'qkv', strict=True):
            name = f'transformer_blocks.{index}.attn.to_{letter}.weight'
            expected[name] = flux.state_dict()[name] + alpha / 4 * part @ down
    return tensors, expected


def test_kohya_with_the_names_of_the_authors(flux, tmp_path):
    tensors, expected = of_kohya(flux, 2)
    before = {name: value.clone() for name, value in flux.state_dict().items()}
    file = save(tensors, tmp_path / 'x.safetensors')
    fuse_lora(flux, flux.config, 'FluxPipeline', file, 1.0, {})
    found = {name: value.clone() for name, value in flux.state_dict().items()}
    flux.load_state_dict(before)
    for name, value in found.items():
        torch.testing.assert_close(value, expected.get(name, before[name]), rtol=1e-5, atol=1e-6)


def test_what_diffusers_would_leave(flux, tmp_path):
    tensors, _ = of_kohya(flux, 2)
    stem = 'lora_unet_double_blocks_0_img_attn_qkv'
    file = save(tensors | {f'{stem}.dora_scale': torch.ones(96, 1)}, tmp_path / 'x.safetensors')
    with pytest.raises(ValueError, match=r'x\.safetensors.*(without 1 of its|no LoRA of this)'):
        fuse_lora(flux, flux.config, 'FluxPipeline', file, 1.0, {})


# -- what is refused -------------------------------------------------------------------------------
@pytest.fixture
def tensors(tiny_latent_dit):
    found, _ = by_peft(tiny_latent_dit, CONFIGS['plain'])
    return {name.removeprefix('base_model.model.'): value for name, value in found.items()}


TO_Q = 'transformer_blocks.1.attn1.to_q'


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (
            lambda t: {'blocks.0.x.lora_A.weight': torch.ones(4, 4)},
            'is not a LoRA of this model.*blocks',
        ),
        (lambda t: t | {'blocks.0.x.lora_A.weight': torch.ones(4, 4)}, r'1 tensors.*blocks\.0'),
        (lambda t: t | {f'{TO_Q}.oft_r': torch.ones(4, 4)}, r'1 tensors.*oft_r'),
        (lambda t: t | {f'{TO_Q}.weight': torch.ones(16, 16)}, r'1 tensors.*to_q\.weight'),
        (
            lambda t: {k: v for k, v in t.items() if k != f'{TO_Q}.lora_B.weight'},
            r'1\.attn1\.to_q it has down, which do not make a whole',
        ),
        (
            lambda t: t | {f'{TO_Q}.lora_A.other.weight': torch.ones(4, 16)},
            r'two tensors of one kind for .*to_q',
        ),
        (
            lambda t: {f'{k[:-7]}.{a}.weight': v.clone() for k, v in t.items() for a in 'ab'},
            r'several adapters \(a, b\), save each by itself',
        ),
        (
            lambda t: {k: v[:, :3] if 'lora_A' in k else v for k, v in t.items()},
            r'to_q cannot be fused: shapes .*another model',
        ),
        (
            lambda t: {k: v * 0 if 'lora_B' in k else v for k, v in t.items()},
            'changes no weight of the 18 layers',
        ),
        (
            lambda t: {k: v * torch.inf if 'lora_B' in k else v for k, v in t.items()},
            'is not finite',
        ),
        (
            lambda t: t | {f'{TO_Q}.dora_scale': torch.ones(1, 16)},
            'magnitudes are not those of its rows',
        ),
        (lambda t: {'text_encoder.x.lora_A.weight': torch.ones(1)}, 'it is empty'),
    ],
)
def test_a_tensor_that_cannot_be_used(tiny_latent_dit, tmp_path, tensors, change, message):
    file = save(change(tensors), tmp_path / 'x.safetensors')
    with pytest.raises(ValueError, match=message) as caught:
        read(dict(model=tiny_latent_dit, lora=file))
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(
    ('entries', 'message'),
    [
        (dict(peft_type='OFT'), "the kind 'OFT' of peft"),
        (
            dict(init_lora_weights='pissa_niter_4'),
            "init_lora_weights='pissa_niter_4', which changes",
        ),
        (dict(use_qalora=True), 'sets use_qalora=True, which is not read'),
        (dict(r=8), 'says rank 8.* whose weights have rank 4'),
        (dict(lora_alpha='x'), "lora_alpha must be a number, got 'x'"),
        ([1], 'is damaged: it must hold a dict'),
    ],
)
def test_a_config_that_cannot_be_used(tiny_latent_dit, tmp_path, tensors, entries, message):
    folder = adapter(tensors, CONFIGS['plain'], tmp_path / 'x')
    config = folder / 'adapter_config.json'
    if isinstance(entries, dict):
        entries = {**json.loads(config.read_text()), **entries}
    config.write_text(json.dumps(entries))
    with pytest.raises(ValueError, match=message):
        read(dict(model=tiny_latent_dit, lora=folder))
    config.write_text('{')
    with pytest.raises(ValueError, match=r'adapter_config\.json is damaged'):
        read(dict(model=tiny_latent_dit, lora=folder))


def test_alphas_that_contradict(tiny_latent_dit, tmp_path, tensors):
    tensors = tensors | {f'{TO_Q}.alpha': torch.tensor(1.0)}
    folder = adapter(tensors, CONFIGS['plain'], tmp_path / 'x')
    with pytest.raises(ValueError, match=r'has alpha 1, and adapter_config\.json says 16'):
        read(dict(model=tiny_latent_dit, lora=folder))


def test_paths(tiny_latent_dit, tmp_path, tensors):
    for lora, message in (
        ('./none', 'lora=.*no such folder'),
        ('none.safetensors', 'lora=.*no such file'),
        ('x.gguf', 'lora='),
        (5, 'lora must be a path'),
        (tmp_path, 'holds no file of weights'),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            read(dict(model=tiny_latent_dit, lora=lora))
    for name in 'ab':
        save(tensors, tmp_path / f'{name}.safetensors')
    with pytest.raises(FileNotFoundError, match=r'several files of weights: a\.saf.*Give the path'):
        read(dict(model=tiny_latent_dit, lora=tmp_path))
    (tmp_path / 'a.safetensors').write_bytes(b'garbage')
    with pytest.raises(ValueError, match=r"lora='.*a\.safetensors' is truncated or damaged"):
        read(dict(model=tiny_latent_dit, lora=tmp_path / 'a.safetensors'))
    (tmp_path / 'a.safetensors').write_text('version https://git-lfs.github.com/spec/v1\n')
    with pytest.raises(ValueError, match=r'lora=.*a\.safetensors is a git-LFS pointer'):
        read(dict(model=tiny_latent_dit, lora=tmp_path / 'a.safetensors'))
    with pytest.raises(ValueError, match=r'changes no weight of the 18 layers.*scale=0'):
        read(dict(model=tiny_latent_dit, lora=dict(path=tmp_path / 'b.safetensors', scale=0)))


def test_blocks_that_are_not_read(tiny_latent_dit, tmp_path, tensors, caplog):
    """Nothing to do, and said loudly."""
    deep = {key: value for key, value in tensors.items() if '.4.' in key}
    deep |= {'text_encoder.x.lora_A.weight': torch.ones(1)}
    file = save(deep, tmp_path / 'x.safetensors')
    dit = read(dict(model=tiny_latent_dit, lora=file), block=1)
    assert '3 of the 3 layers that it changes are in blocks that are not read' in caplog.text
    assert '1 of its tensors are for text encoders' in caplog.text
    stock = load(tiny_latent_dit).state_dict()
    for name, value in dit.transformer.state_dict().items():
        assert torch.equal(value, stock[name])


def test_a_lora_in_the_folder_is_mentioned(tiny_latent_dit, tmp_path, caplog):
    folder = Path(shutil.copytree(tiny_latent_dit, tmp_path / 'model'))
    (folder / 'pytorch_lora_weights.safetensors').touch()
    read(folder, block=0)
    assert 'pytorch_lora_weights.safetensors, which is not applied' in caplog.text
