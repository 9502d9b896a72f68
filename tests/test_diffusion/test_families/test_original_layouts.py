# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Files of each family in the layout of its authors or of ComfyUI give the folder's features."""

import functools
import re

import original_names
import pytest
import safetensors.torch
import test_auraflow
import test_chroma
import test_cosmos
import test_ernie_image
import test_flux
import test_flux3
import test_hidream
import test_krea2
import test_lumina2
import test_qwen_image
import test_qwen_image21
import test_sana
import test_wan
import torch
from diffusers import DiTTransformer2DModel, Lumina2Transformer2DModel
from sources import described
from test_single_files import COMFY, assert_same_weights, save, save_gguf

from mmaselect.diffusion import FrozenDiT
from mmaselect.diffusion.parts import MissingWeights

#: Family to what saves a tiny pipeline of it.
BUILDS = {
    'auraflow': test_auraflow.AuraFlow().build,
    'chroma': test_chroma.TestChroma().build,
    'cosmos': test_cosmos.TestCosmos().build,
    'ernie_image': test_ernie_image.ErnieImage().build,
    'flux': test_flux.save_pipeline,
    'flux3': test_flux3.Flux3().build,
    'hidream': test_hidream.TestHiDream().build,
    'krea2': test_krea2.Krea2().build,
    'lumina2': test_lumina2.Lumina2().build,
    'qwen_image': test_qwen_image.TestQwenImage().build,
    'qwen_image21': test_qwen_image21.QwenImage21().build,
    'sana': test_sana.Sana().build,
    'wan': test_wan.Wan().build,
}
#: Family to a weight of its first block by its original name, and how an error calls it.
NEEDED = {
    'auraflow': (
        'double_layers.0.attn.w2k.weight',
        r'lacks 1 weights .*double_layers\.0\.attn\.w2k',
    ),
    'chroma': (
        'double_blocks.0.img_attn.proj.weight',
        r'lacks 1 weights .*double_blocks\.0\.img_attn\.proj',
    ),
    'cosmos': ('net.blocks.0.mlp.layer1.weight', r'lacks 1 weights .*blocks\.0\.ff\.net\.0'),
    'flux': (
        'double_blocks.0.img_mod.lin.weight',
        r'lacks 1 weights .*double_blocks\.0\.img_mod\.lin',
    ),
    'flux3': (
        'content_mode_blocks.image.0.mlp_in.weight',
        r'lacks 1 weights .*mode_blocks\.image\.0\.ff\.linear_in',
    ),
    'krea2': ('blocks.0.mlp.up.weight', r'lacks 1 weights .*transformer_blocks\.0\.ff\.up'),
    'qwen_image21': (
        'transformer_blocks.0.img_mlp.gate_up.weight',
        r'lacks 2 weights .*blocks\.0\.img_mlp\.gate_layer',
    ),
    'sana': ('blocks.0.attn.qkv.weight', r'lacks 1 weights .*blocks\.0\.attn\.qkv'),
    'wan': ('blocks.0.ffn.0.bias', r'lacks 1 weights .*blocks\.0\.ffn\.net\.0\.proj\.bias'),
}
STACKS = ('double_blocks', 'double_layers', 'content_mode_blocks', 'blocks', 'transformer_blocks')


@pytest.fixture(scope='module')
def case(tmp_path_factory):
    """Name to the folder, and the weights under diffusers' names."""

    @functools.cache
    def build(name):
        torch.manual_seed(0)
        folder = tmp_path_factory.mktemp(name)
        BUILDS[name](folder)
        file = folder / 'transformer' / 'diffusion_pytorch_model.safetensors'
        return folder, safetensors.torch.load_file(file)

    return build


def features(pretrained, blocks, **options):
    source, others = described(pretrained, {'dtype': 'fp32', **options})
    dit = FrozenDiT.from_pretrained(source, blocks=blocks, features=('query', 'output'), **others)
    # Where a weight lies in a file decides how a CPU rounds: all of them lie anew.
    for parameter in dit.transformer.parameters():
        parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)
    torch.manual_seed(5)
    latent = dit.encode(torch.rand(1, 3, 64, 64) * 2 - 1)
    return dit, dit.features(latent, 300, torch.randn_like(latent))


def assert_same(folder, blocks, files, **options):
    stock, expected = features(folder, blocks, **options)
    for file in files:
        dit, found = features(file, blocks, base=folder, **options)
        assert type(dit.transformer) is type(stock.transformer)
        assert_same_weights(dit, stock)
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert value.isfinite().all()
            assert torch.equal(found[key], value), (file.name, key)
    return stock


def prefixed(weights):
    found = {f'{COMFY}{name.removeprefix("net.")}': value for name, value in weights.items()}
    return found | {'vae.x': torch.ones(1)}


@pytest.mark.parametrize('name', sorted(BUILDS))
def test_names_of_diffusers(case, tmp_path, name):
    folder, weights = case(name)
    # Three families have these names in ComfyUI, too.
    files = [save(prefixed(weights), tmp_path / 'x.safetensors')]
    if name == 'hidream':
        files.append(save(weights, tmp_path / 'bare.safetensors'))
    stock = assert_same(folder, [0, 1], files)
    # The others are not built.
    parameters = sum(parameter.numel() for parameter in stock.transformer.parameters())
    assert parameters < sum(value.numel() for value in weights.values())
    assert stock.num_blocks > 2


def original(name, weights):
    found = getattr(original_names, name)(weights)
    if name in ('flux', 'chroma'):
        # The converter splits a single block at the published width, whatever the model's. It is
        # one that a file of two-stream blocks must have, and that is not built.
        for key in found:
            if '.linear1.' in key:
                found[key] = found[key].new_zeros(7 * 3072, *found[key].shape[1:])
    return found


def spoiled_beyond(weights, block):
    """With weights of later blocks that would be seen in the features."""
    found = {}
    for name, value in weights.items():
        block_of = re.match(r'(?:net\.)?(\w+)\.(?:\w+\.)??(\d+)\.', name)
        later = block_of and block_of[1] in STACKS and int(block_of[2]) > block
        found[name] = torch.full_like(value, torch.nan) if later else value
    return found


@pytest.mark.parametrize('block', ['first', 'last'])
@pytest.mark.parametrize('name', sorted(NEEDED))
def test_original_names(case, tmp_path, name, block):
    folder, weights = case(name)
    theirs = original(name, weights)
    assert not weights.keys() >= theirs.keys()
    if block == 'first':
        theirs, block = prefixed(spoiled_beyond(theirs, 0)), 0
    else:
        # For two of them the last block of two streams.
        block = {'flux': 1, 'chroma': 1}.get(name, -1)
    assert_same(folder, [block], [save(theirs, tmp_path / 'x.safetensors')])


@pytest.mark.parametrize('name', sorted(NEEDED))
def test_a_missing_weight_is_named(case, tmp_path, name):
    folder, weights = case(name)
    lost, message = NEEDED[name]
    theirs = original(name, weights)
    del theirs[lost]
    file = save(theirs, tmp_path / 'x.safetensors')
    with pytest.raises(MissingWeights, match=message) as caught:
        features(file, [0], base=folder)
    assert str(file) in str(caught.value)
    # Of a block that is not read, it is none.
    later = lost.replace('.0.', '.3.', 1)
    if later in (theirs := original(name, weights)):
        del theirs[later]
        features(save(theirs, tmp_path / 'later.safetensors'), [0], base=folder)


@pytest.mark.parametrize(
    ('name', 'known', 'width'),
    [('chroma', 3072, 32), ('flux', 3072, 32), ('lumina2', 2304, 48)],
)
def test_another_width_is_refused(case, tmp_path, name, known, width):
    folder, weights = case(name)
    file = save(getattr(original_names, name)(weights), tmp_path / 'x.safetensors')
    with pytest.raises(
        ValueError,
        match=rf'it knows {known} channels alone, and base=\.\.\. has {width}\): give the model in',
    ):
        features(file, [3], base=folder)


def test_lumina2_as_wide_as_published(tmp_path):
    """Two blocks, and all else small, is 170 MB."""
    test_lumina2.Lumina2().build(tmp_path)
    path = tmp_path / 'transformer'
    small = Lumina2Transformer2DModel.load_config(path)
    wide = {'hidden_size': 2304, 'num_attention_heads': 24, 'num_kv_heads': 8}
    wide |= {'axes_dim_rope': (32, 32, 32), 'num_layers': 2, 'num_refiner_layers': 1}
    with torch.device('meta'):
        model = Lumina2Transformer2DModel.from_config({**small, **wide, 'ffn_dim_multiplier': 0.01})
    model = model.to(torch.bfloat16).to_empty(device='cpu')
    torch.manual_seed(0)
    for parameter in model.parameters():
        # Random numbers for all of them would take seconds; these repeat out of step with the rows.
        some = torch.randn(997) * 0.02 + (parameter.ndim == 1)
        parameter.data.copy_(
            some.repeat(parameter.numel() // 997 + 1)[: parameter.numel()].view_as(parameter)
        )
    model.save_pretrained(path)
    theirs = original_names.lumina2(model.state_dict())
    assert theirs['layers.0.attention.qkv.weight'].shape == (3840, 2304)
    assert_same(tmp_path, [0], [save(theirs, tmp_path / 'x.safetensors')], dtype='bf16')
    del theirs['layers.0.feed_forward.w1.weight']
    file = save(theirs, tmp_path / 'x.safetensors')
    with pytest.raises(
        MissingWeights, match=r'lacks 1 weights .*layers\.0\.feed_forward\.linear_1'
    ):
        features(file, [0], base=tmp_path, dtype='bf16')


def test_what_a_converter_leaves_out(tmp_path):
    """Sana 1.5 normalizes queries and keys, of which the converter of Sana knows nothing."""
    test_sana.TestSana15().build(tmp_path)
    weights = safetensors.torch.load_file(
        tmp_path / 'transformer' / 'diffusion_pytorch_model.safetensors'
    )
    file = save(original_names.sana(weights), tmp_path / 'x.safetensors')
    with pytest.raises(
        ValueError,
        match=r"does not know 8 weights of the file \(first: \['blocks\.0\.attn\.k_norm\.weight'.*"
        r"4 of the model stay without .*attn1\.norm_k.*give the model in diffusers' layout",
    ):
        features(file, [0], base=tmp_path)
    assert_same(tmp_path, [0], [save(weights, tmp_path / 'x.safetensors')])


@pytest.mark.parametrize('name', ['flux', 'qwen_image', 'hidream'])
def test_gguf(case, tmp_path, name):
    folder, weights = case(name)
    theirs = original(name, weights) if name == 'flux' else weights
    dit, found = features(save_gguf(theirs, tmp_path / 'x.gguf'), [1], base=folder)
    assert sum(p.dtype == torch.uint8 for p in dit.transformer.parameters()) > 10
    for key, value in features(folder, [1])[1].items():
        assert not torch.equal(found[key], value)
        assert (found[key] - value).abs().max() < 0.05 * value.abs().max(), key


def test_gguf_of_a_class_that_diffusers_does_not_read(tiny_latent_dit, tmp_path):
    weights = DiTTransformer2DModel.from_pretrained(
        tiny_latent_dit, subfolder='transformer'
    ).state_dict()
    file = save_gguf(weights, tmp_path / 'x.gguf')
    with pytest.raises(
        ValueError, match=r'no GGUF files of DiTTransformer2DModel: give .*\.safetensors'
    ):
        features(file, [0], base=tiny_latent_dit)
