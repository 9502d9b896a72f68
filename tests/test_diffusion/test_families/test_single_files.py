# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""One file with a transformer's weights gives the features of the pipeline that has them."""

import numpy as np
import original_names
import pytest
import safetensors.torch
import test_flux2
import test_z_image
import torch
from diffusers import DiTTransformer2DModel, GGUFQuantizationConfig
from sources import described
from tiny_sd3 import save_sd3

from mmaselect.diffusion import FrozenDiT
from mmaselect.models.backbones.checkpoint_guard import weights_signature
from mmaselect.selection.identity import weights_fingerprint

COMFY = 'model.diffusion_model.'


@pytest.fixture(scope='module')
def bases(tmp_path_factory):
    """Pipelines by name, and their weights under original names."""
    found = {}
    for name, build in (
        ('sd3', save_sd3),
        ('z_image', test_z_image.TestZImage().build),
        ('flux2', test_flux2.TestFlux2Klein().build),
    ):
        torch.manual_seed(0)
        folder = tmp_path_factory.mktemp(name)
        build(folder)
        weights = safetensors.torch.load_file(
            folder / 'transformer' / 'diffusion_pytorch_model.safetensors'
        )
        original = (
            original_names.sd3(weights, 5)
            if name == 'sd3'
            else getattr(original_names, name)(weights)
        )
        found[name] = folder, weights, original
    return found


def save(weights, file):
    weights = {name: value.contiguous() for name, value in weights.items()}
    if file.suffix == '.safetensors':
        safetensors.torch.save_file(weights, file)
    else:
        torch.save({'state_dict': weights}, file)
    return file


def features(pretrained, block, **options):
    source, others = described(pretrained, {'dtype': 'fp32', **options})
    dit = FrozenDiT.from_pretrained(source, blocks=block, features=('query', 'output'), **others)
    torch.manual_seed(5)  # only now: how weights are read takes its share of random numbers
    latent = dit.encode(torch.rand(1, 3, 64, 64) * 2 - 1)
    return dit, dit.features(latent, 300, torch.randn_like(latent))


def close(one, other):
    """Weights that are the same still lie at other places of a file, and round otherwise."""
    return all(torch.allclose(one[key], other[key], rtol=1e-4, atol=1e-5) for key in one)


def assert_same_weights(one, other):
    one, other = one.transformer.state_dict(), other.transformer.state_dict()
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


@pytest.mark.parametrize('block', ['first', 'middle', 'last'])
@pytest.mark.parametrize('name', ['sd3', 'z_image', 'flux2'])
def test_original_names(bases, tmp_path, name, block):
    folder, _, original = bases[name]
    count = FrozenDiT.from_pretrained(folder, blocks=0).num_blocks
    block = {'first': 0, 'middle': count // 2, 'last': count - 1}[block]
    stock, expected = features(folder, block)
    bare = save(original, tmp_path / 'bare.safetensors')
    comfy = {f'{COMFY}{key}': value for key, value in original.items()}
    comfy |= {'first_stage_model.x': torch.ones(1), 'text_encoders.x': torch.ones(1)}
    for file in (bare, save(comfy, tmp_path / 'comfy.safetensors'), save(comfy, tmp_path / 'x.pt')):
        dit, found = features(file, block, base=folder)
        assert type(dit.transformer) is type(stock.transformer)
        assert_same_weights(dit, stock)
        assert close(found, expected)


@pytest.mark.parametrize('dtype', ['bf16', 'fp16'])
def test_precisions(bases, tmp_path, dtype):
    folder, _, original = bases['z_image']
    file = save(original, tmp_path / 'x.safetensors')
    _, expected = features(folder, 1, dtype=dtype)
    dit, found = features(file, 1, dtype=dtype, base=folder)
    assert (found[1, 'output'] - expected[1, 'output']).abs().max() < 0.02 * expected[
        1, 'output'
    ].abs().max()
    assert str(dit.dtype) in ('torch.bfloat16', 'torch.float16')


def test_plain_fp8(bases, tmp_path):
    """Eight bits without scales, as ComfyUI's fp8 files are: read as the numbers they are."""
    folder, _, original = bases['z_image']
    small = {
        key: value.to(torch.float8_e4m3fn) if value.ndim == 2 else value
        for key, value in original.items()
    }
    wide = {key: value.float() for key, value in small.items()}
    one, two = (
        features(save(weights, tmp_path / f'{name}.safetensors'), 1, base=folder)
        for name, weights in (('small', small), ('wide', wide))
    )
    assert {p.dtype for p in one[0].transformer.parameters()} == {torch.float32}
    assert_same_weights(one[0], two[0])
    assert close(one[1], two[1])


@pytest.mark.parametrize('rows', [False, True])
def test_scaled_fp8_of_comfy(bases, tmp_path, rows):
    """Scales are applied before fused projections are split."""
    folder, _, original = bases['z_image']
    stored, exact = {'scaled_fp8': torch.zeros(2).to(torch.float8_e4m3fn)}, {}
    for name, value in original.items():
        stored[name] = exact[name] = value
        if value.ndim == 2 and name.endswith('.weight'):
            scale = value.abs().amax(1, keepdim=True) / 448 if rows else value.abs().max() / 448
            stored[name] = (value / scale).to(torch.float8_e4m3fn)
            exact[name] = stored[name].float() * scale
            stored[name.replace('.weight', '.scale_weight')] = scale.flatten()
            stored[name.replace('.weight', '.scale_input')] = torch.ones(1)
    prefixed = {f'{COMFY}{name}': value for name, value in stored.items()}
    found = features(save(prefixed, tmp_path / 'scaled.safetensors'), 1, base=folder)
    expected = features(save(exact, tmp_path / 'exact.safetensors'), 1, base=folder)
    assert_same_weights(found[0], expected[0])
    assert close(found[1], expected[1])


@pytest.mark.parametrize(
    ('name', 'layer'),
    [
        ('sd3', 'joint_blocks.0.x_block.mlp.fc1'),
        ('z_image', 'layers.0.feed_forward.w1'),
        ('flux2', 'double_blocks.0.img_mlp.0'),
    ],
)
def test_entries_that_the_converter_leaves(bases, tmp_path, name, layer):
    folder, _, original = bases[name]
    stray = f'{layer}.weight_shift'
    assert f'{layer}.weight' in original
    file = save(original | {stray: torch.ones(1)}, tmp_path / 'x.safetensors')
    with pytest.raises(ValueError, match=r'takes no .*weight_shift') as caught:
        features(file, 1, base=folder)
    assert str(file) in str(caught.value)


def test_only_what_is_needed_reaches_the_converter(bases, tmp_path, monkeypatch):
    """Blocks beyond may even be damaged."""
    folder, _, original = bases['z_image']
    broken = {
        key: torch.full_like(value, torch.nan)
        if key.startswith(('layers.2', 'layers.3'))
        else value
        for key, value in original.items()
    }
    file = save(broken, tmp_path / 'x.safetensors')
    seen = []
    read = safetensors.torch.load_file
    from mmaselect.diffusion import single_file

    kept = single_file.SingleFile._kept

    def noting(self, *args):
        seen.append(kept(self, *args))
        return seen[-1]

    monkeypatch.setattr(single_file.SingleFile, '_kept', noting)
    _, found = features(file, 0, base=folder)
    assert found[0, 'output'].isfinite().all()
    assert {key.split('.')[1] for key in seen[0] if key.startswith('layers.')} == {'0', '1'}
    assert len(read(file)) > len(seen[0])


@pytest.mark.parametrize('name', ['z_image', 'dit', 'sd3'])
def test_names_of_diffusers(bases, tiny_latent_dit, tmp_path, name):
    if name == 'dit':
        folder = tiny_latent_dit
        weights = DiTTransformer2DModel.from_pretrained(
            folder, subfolder='transformer'
        ).state_dict()
    else:
        folder, weights, _ = bases[name]
    stock, expected = features(folder, 1)
    prefixed = {f'{COMFY}{key}': value for key, value in weights.items()}
    for number, file in enumerate(
        (
            save(weights, tmp_path / 'bare.safetensors'),
            save(prefixed, tmp_path / 'prefixed.safetensors'),
            save(weights, tmp_path / 'x.pt'),
        )
    ):
        dit, found = features(file, 1, base=folder)
        assert_same_weights(dit, stock)
        assert close(found, expected), number
        assert dit.num_blocks > 2


def without(weights, part):
    return {key: value for key, value in weights.items() if part not in key}


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (
            lambda w, o: without(o, 'layers.1.feed_forward.w1'),
            r'lacks 1 weights .*layers\.1\.feed_',
        ),
        (
            lambda w, o: without(w, 'layers.1.feed_forward.w1'),
            r'lacks 1 weights .*layers\.1\.feed_',
        ),
        (
            lambda w, o: {'a.b': torch.ones(1)},
            'cannot convert its weights to ZImage.*of another mod',
        ),
        (lambda w, o: o | {'layers.0.x.absmax': torch.ones(1)}, 'quantized in a layout that'),
        (lambda w, o: o | {'layers.0.attention.qkv.weight': torch.ones(7, 5)}, 'cannot convert'),
    ],
)
def test_what_does_not_fit(bases, tmp_path, change, message):
    folder, weights, original = bases['z_image']
    file = save(change(weights, original), tmp_path / 'x.safetensors')
    with pytest.raises((ValueError, RuntimeError), match=message) as caught:
        features(file, 2, base=folder)
    assert str(file) in str(caught.value)


def test_a_file_needs_a_base(bases, tmp_path, tiny_latent_dit):
    _, _, original = bases['z_image']
    file = save(original, tmp_path / 'x.safetensors')
    with pytest.raises(
        ValueError, match=r'holds the weights of a transformer alone: name by base='
    ):
        features(file, 0)
    with pytest.raises(ValueError, match=r'not the names of DiTTransformer2DModel.*no others'):
        features(file, 0, base=tiny_latent_dit)
    with pytest.raises(ValueError, match=r"not the names of weights of a DiT.* original='sit'"):
        features(file, 0, base=bases['z_image'][0], original='sit')


# -- GGUF -----------------------------------------------------------------------------------------
def save_gguf(weights, file, kind='Q8_0'):
    gguf = pytest.importorskip('gguf')
    writer = gguf.GGUFWriter(file, 'x')
    for name, value in weights.items():
        values = value.float().numpy()
        kinds = gguf.GGMLQuantizationType
        # Published files leave the gates of HiDream's experts as they are, too.
        exact = name.endswith(('pad_token', 'ff_i.gate.weight'))
        if value.ndim == 2 and value.shape[1] % 32 == 0 and not exact:
            values = gguf.quants.quantize(np.ascontiguousarray(values), kinds[kind])
            writer.add_tensor(name, values, raw_dtype=kinds[kind])
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.mark.parametrize('names', ['original', 'diffusers'])
@pytest.mark.parametrize('dtype', ['fp32', 'bf16'])
def test_gguf(bases, tmp_path, names, dtype):
    folder, weights, original = bases['z_image']
    file = save_gguf(original if names == 'original' else weights, tmp_path / 'x.gguf')
    _, exact = features(folder, 1, dtype=dtype)
    dit, found = features(file, 1, base=folder, dtype=dtype)
    for key, value in exact.items():
        assert found[key].dtype == value.dtype
        assert not torch.equal(found[key], value)
        assert (found[key] - value).abs().max() < 0.05 * value.abs().max(), key
    quantized = [p for p in dit.transformer.parameters() if p.dtype == torch.uint8]
    assert len(quantized) > 10
    # Of what the weights stand for, so that the same weights in another form are the same model.
    signature = weights_signature(dit.transformer)
    assert signature.isfinite().all()
    own = weights_signature(features(folder, 1, dtype=dtype)[0].transformer)
    assert torch.allclose(signature, own, rtol=2e-2, atol=5e-3)
    assert weights_fingerprint(dit) == weights_fingerprint(
        features(file, 1, base=folder, dtype=dtype)[0]
    )


@pytest.mark.parametrize('names', ['original', 'diffusers'])
def test_gguf_with_an_entry_that_nothing_takes(bases, tmp_path, names):
    folder, weights, original = bases['z_image']
    weights = original if names == 'original' else weights
    stray = 'layers.0.feed_forward.w1.weight_scale'
    file = save_gguf(weights | {stray: torch.ones(1)}, tmp_path / 'x.gguf')
    with pytest.raises(ValueError, match=f'takes no {stray}'):
        features(file, 1, base=folder)


def test_gguf_errors(bases, tmp_path):
    folder, _, original = bases['z_image']
    file = save_gguf(original, tmp_path / 'x.gguf')
    (tmp_path / 'damaged.gguf').write_bytes(file.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r'damaged\.gguf.* is truncated or damaged'):
        features(tmp_path / 'damaged.gguf', 1, base=folder)
    with pytest.raises(ValueError, match='transformer alone: name by base='):
        features(file, 1)
    config = GGUFQuantizationConfig(compute_dtype=torch.float32)
    with pytest.raises(
        ValueError, match=r'quantization_config=.* does not fit what is not a GGUF file'
    ):
        features(folder, 1, load_kwargs=dict(quantization_config=config))
    with pytest.raises(ValueError, match=r'quantization_config=.* does not fit a GGUF file'):
        features(
            file, 1, base=folder, load_kwargs=dict(quantization_config=dict(load_in_8bit=True))
        )
    _, found = features(file, 1, base=folder, load_kwargs=dict(quantization_config=config))
    assert found[1, 'query'].isfinite().all()


def test_quantized_weights_take_no_lora(bases, tmp_path):
    file = save_gguf(bases['z_image'][2], tmp_path / 'x.gguf')
    lora = save(
        {'layers.0.attention.to_q.lora_A.weight': torch.ones(4, 32)}, tmp_path / 'l.safetensors'
    )
    with pytest.raises(ValueError, match='cannot be fused into quantized weights'):
        features(file, 1, base=bases['z_image'][0], lora=lora)


def test_gguf_is_not_installed(bases, tmp_path, monkeypatch):
    file = save_gguf(bases['z_image'][2], tmp_path / 'x.gguf')
    from mmaselect.diffusion import gguf_file

    monkeypatch.setattr(gguf_file.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(ImportError, match=r'pip install gguf.*\[checkpoints\]'):
        FrozenDiT.from_pretrained(dict(model=file, base=bases['z_image'][0]))


# -- other quantization ---------------------------------------------------------------------------
@pytest.mark.parametrize(
    ('config', 'kind', 'message'),
    [
        (5, ValueError, 'quantization_config=5 is not a config: give one of diffusers'),
        (dict(bits=8), ValueError, r"quantization_config=\{'bits': 8\} is not a config"),
        (dict(quant_method='nothing', bits=8), ValueError, 'nothing'),
        (
            dict(load_in_8bit=True),
            (ValueError, ImportError),
            'does not work here: No GPU|not installed',
        ),
    ],
)
def test_quantization_that_does_not_work(tiny_latent_dit, config, kind, message):
    if torch.cuda.is_available() and config == dict(load_in_8bit=True):
        pytest.skip('there is a GPU')
    with pytest.raises(kind, match=message):
        features(tiny_latent_dit, 0, load_kwargs=dict(quantization_config=config))
