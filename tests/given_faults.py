# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Faults of what is given, for :mod:`fault_matrix`: LoRAs, 8-bit weights, paths, looks, names."""

from __future__ import annotations

import io
import json
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from mmaselect import FeatureExtractor, select_timestep
from mmaselect.apis import FeaturesOnly, TransformersBackbone, save_features
from mmaselect.apis.sklearn import DiTFeatures
from mmaselect.cli.command import main as command
from mmaselect.diffusion import FrozenDiT
from mmaselect.images import ImageFolder
from mmaselect.images.sources import build_image_source
from mmaselect.look import look_at

Attempt = Callable[[Any], Any]
WEIGHTS = 'transformer/diffusion_pytorch_model.safetensors'
_LAYER = 'transformer_blocks.1.attn1.to_q'


def given_faults(add: Callable[..., None], expect: Callable[[bool, str], None]) -> None:
    """List the faults.

    Args:
        add: ``add(group, name, attempt, *words, may=False)`` of the matrix.
        expect: Raises unless a condition holds.
    """
    _lora(add, expect)
    _quantized(add, expect)
    _paths(add, expect)
    _look(add, expect)
    _names(add)
    _unused(add)


# -- LoRA ------------------------------------------------------------------------------------------
def _pair(weight: torch.Tensor, rank: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Random A and B."""
    generator = torch.Generator().manual_seed(0)
    down = torch.randn(rank, weight.shape[1], generator=generator)
    return down, torch.randn(weight.shape[0], rank, generator=generator)


def _lora(add: Callable[..., None], expect: Callable[[bool, str], None]) -> None:
    def fused(
        layout: Callable[[torch.Tensor, torch.Tensor], dict[str, Any]],
        factor: float = 1.0,
        config: Any = None,
        **lora: Any,
    ) -> Attempt:
        """Weights equal W + factor B A."""

        def attempt(shop: Any) -> None:
            folder = shop.here / 'lora'
            folder.mkdir()
            weight = load_file(shop.pixels / WEIGHTS)[f'{_LAYER}.weight']
            down, up = _pair(weight)
            tensors = {name: value.contiguous() for name, value in layout(down, up).items()}
            file = folder / 'adapter_model.safetensors'
            save_file(tensors, file)
            if config is not None:
                text = config if isinstance(config, str) else json.dumps(config)
                (folder / 'adapter_config.json').write_text(text)
            source = dict(model=str(shop.pixels), lora=dict(path=str(file), **lora))
            dit = FrozenDiT.from_pretrained(source, blocks=[2])
            found = dit.transformer.state_dict()[f'{_LAYER}.weight']
            expect(torch.allclose(found, weight + factor * up @ down, atol=1e-5), 'other weights')

        return attempt

    def named(first: str, second: str, prefix: str = '') -> Callable[..., dict[str, Any]]:
        return lambda down, up: {
            f'{prefix}{_LAYER}.{first}.weight': down,
            f'{prefix}{_LAYER}.{second}.weight': up,
        }

    plain = named('lora_A', 'lora_B', 'base_model.model.')
    peft = dict(peft_type='LORA', r=2, lora_alpha=2, target_modules=['to_q'])
    for name, attempt in (
        ('of peft', fused(plain, config=peft)),
        ('of peft, alpha 8', fused(plain, 4.0, {**peft, 'lora_alpha': 8})),
        ('of peft, half of its strength', fused(plain, 0.5, peft, scale=0.5)),
        ('of diffusers', fused(named('lora_A', 'lora_B', 'transformer.'))),
        ('lora_down and lora_up', fused(named('lora_down', 'lora_up', 'transformer.'))),
        (
            'alpha among the tensors',
            fused(
                lambda a, b: {
                    **named('lora_down', 'lora_up', 'transformer.')(a, b),
                    f'transformer.{_LAYER}.alpha': torch.tensor(8.0),
                },
                4.0,
            ),
        ),
        ('named adapters', fused(named('lora_A.default_0', 'lora_B.default_0', 'transformer.'))),
    ):
        add('LoRA', name, attempt)
    for name, attempt, words in (
        ('half of a pair', lambda a, b: {f'{_LAYER}.lora_A.weight': a}, [_LAYER, 'incomplete']),
        ('of another layer', named('lora_A', 'lora_B', 'nowhere.'), ['nowhere']),
        ('of another rank', lambda a, b: plain(a[:1], b), ['adapter_model']),
        ('of another width', lambda a, b: plain(a[:, :3], b), ['adapter_model']),
        ('not finite', lambda a, b: plain(a * float('nan'), b), ['adapter_model']),
        ('zeros', lambda a, b: plain(a * 0, b * 0), ['adapter_model']),
        ('an entry more', lambda a, b: {**plain(a, b), 'x.y': a}, ['x.y']),
        ('nothing', lambda a, b: {}, ['adapter_model']),
    ):
        add('LoRA', name, fused(attempt), *words)
    for name, config in (
        ('damaged', '{'),
        ('of another rank', {**peft, 'r': 8}),
        ('of another kind', {**peft, 'peft_type': 'OFT'}),
        ('whose alpha is a word', {**peft, 'lora_alpha': 'x'}),
    ):
        add('LoRA', f'a config {name}', fused(plain, config=config), 'adapter_config.json')
    add('LoRA', 'a strength that is a word', fused(plain, scale='x'), 'scale of lora')

    def without(shop: Any) -> None:
        source = dict(model=str(shop.pixels), lora=str(shop.here / 'gone.safetensors'))
        FrozenDiT.from_pretrained(source)

    add('LoRA', 'no such file', without, 'gone.safetensors')


# -- weights in 8 bits -----------------------------------------------------------------------------
def _quantized(add: Callable[..., None], expect: Callable[[bool, str], None]) -> None:
    def scaled(spelling: str, kind: torch.dtype, change: Any = None) -> Attempt:
        """Weights are those that were quantized, times their scale."""

        def attempt(shop: Any) -> None:
            model = shop.model(latent=False)
            tensors = load_file(model / WEIGHTS)
            weight = tensors[f'{_LAYER}.weight']
            top = 127 if kind == torch.int8 else torch.finfo(kind).max
            scale = weight.abs().max() / top
            small = weight / scale
            small = (small.round() if kind == torch.int8 else small).to(kind)
            expected = small.float() * scale
            tensors[f'{_LAYER}.weight'] = small
            tensors[f'{_LAYER}.{spelling}'] = scale
            if change is not None:
                change(tensors, spelling)
            save_file(tensors, model / WEIGHTS, {'format': 'pt'})
            found = FrozenDiT.from_pretrained(model, blocks=[2]).transformer.state_dict()
            expect(torch.allclose(found[f'{_LAYER}.weight'], expected, atol=1e-6), 'other weights')

        return attempt

    for spelling in ('weight_scale', 'scale_weight', 'weight.scale', 'scale'):
        for kind in (torch.float8_e4m3fn, torch.int8):
            add('quantized weights', f'{spelling} of {kind}', scaled(spelling, kind))

    def put(suffix: str, value: Any) -> Callable[[dict[str, Any], str], Any]:
        return lambda tensors, spelling: tensors.update({f'{_LAYER}.{suffix}': value})

    for name, change, words in (
        ('a scale of another shape', put('weight_scale', torch.ones(3)), ['weight_scale']),
        ('a scale of zero', put('weight_scale', torch.zeros(1)), ['weight_scale']),
        ('a scale of NaN', put('weight_scale', torch.tensor(float('nan'))), ['weight_scale']),
        ('two scales', put('scale', torch.ones(1)), ['scale']),
        ('zero points', put('weight_zero_point', torch.ones(1)), ['weight_zero_point']),
        ('an entry of no layer', put('qweight', torch.ones(1)), ['qweight']),
    ):
        attempt = scaled('weight_scale', torch.int8, change)
        add('quantized weights', name, attempt, *words)

    def no_scale(tensors: dict[str, Any], spelling: str) -> None:
        del tensors[f'{_LAYER}.{spelling}']

    add('quantized weights', 'no scale', scaled('weight_scale', torch.int8, no_scale), 'scale')


# -- paths of images, and what reads them ----------------------------------------------------------
def _packed(shop: Any, kind: str, name: str, content: bytes) -> Path:
    """An archive, or a list, of the photos and one more image."""
    files = {path.name: path.read_bytes() for path in sorted(shop.photos.iterdir())}
    files[name] = content
    out = shop.here / f'x.{kind}'
    if kind == 'zip':
        with zipfile.ZipFile(out, 'w') as packed:
            for key, data in files.items():
                packed.writestr(key, data)
    elif kind == 'tar':
        with tarfile.open(out, 'w') as packed:
            for key, data in files.items():
                entry = tarfile.TarInfo(key)
                entry.size = len(data)
                packed.addfile(entry, io.BytesIO(data))
    elif kind == 'parquet':
        import pyarrow
        import pyarrow.parquet

        rows = [dict(bytes=data, path=key) for key, data in files.items()]
        pyarrow.parquet.write_table(pyarrow.table({'image': rows}), out)
    else:
        folder = shop.here / 'photos'
        folder.mkdir()
        for key, data in files.items():
            (folder / key).write_bytes(data)
        if kind == 'folder':
            return folder
        out.write_text('\n'.join(f'photos/{key}' for key in files))
    return out


def _png(**options: Any) -> bytes:
    stream = io.BytesIO()
    Image.new('RGB', (20, 12), (9, 99, 200)).save(stream, 'png', **options)
    return stream.getvalue()


def _exif(*entries: tuple[int, int, int, bytes]) -> bytes:
    packed = b''.join(struct.pack('<HHI4s', *entry) for entry in entries)
    return b'Exif\0\0II*\0' + struct.pack('<IH', 8, len(entries)) + packed + bytes(4)


def _paths(add: Callable[..., None], expect: Callable[[bool, str], None]) -> None:
    turned = (0x0112, 3, 1, b'\x06\0\0\0')
    kinds = ('folder', 'zip', 'tar', 'parquet', 'txt')

    def read(kind: str, content: bytes, shape: tuple[int, ...] = (12, 20, 3)) -> Attempt:
        def attempt(shop: Any) -> None:
            source = build_image_source(str(_packed(shop, kind, 'z.png', content)))
            found = [source.load(index) for index in range(len(source))]
            photos = ImageFolder(shop.photos)
            for index in range(len(photos)):
                expect(np.array_equal(found[index], photos.load(index)), 'other pixels')
            expect(len(found) == 7 and found[6].shape == shape, 'not the image')

        return attempt

    for kind in kinds:
        add('image paths', f'{kind}: as it is', read(kind, _png()))
        malformed = _png(exif=_exif(turned, (0x011A, 2, 4, b'abc\0')))
        add('image paths', f'{kind}: an EXIF entry', read(kind, malformed, (20, 12, 3)))
        add('image paths', f'{kind}: EXIF of nothing', read(kind, _png(exif=b'Exif\0\0xyz')))
        for name, content in (
            ('half an image', _png()[:60]),
            ('an empty image', b''),
            ('a page in its place', b'<html>404</html>'),
        ):
            add('image paths', f'{kind}: {name}', read(kind, content), 'z.png', 'cannot be read')
    for name, given, words in (
        ('a file of NumPy', 'x.npy', ['x.npy', 'no images are read']),
        ('an archive that is compressed', 'x.tar.gz', ['x.tar.gz', 'no images are read']),
        ('a list of nothing', 'empty.txt', ['empty.txt', 'empty']),
        ('a list of names', 'names.txt', ['names.txt', '2007_000032']),
        ('a zip that is none', 'x.zip', ['x.zip', 'not a zip file']),
        ('a pattern of nothing', '*.jpeg', ['*.jpeg']),
        ('one image', 'one.png', ['1']),
    ):

        def attempt(shop: Any, given: str = given) -> None:
            for name in ('x.npy', 'x.tar.gz', 'x.zip'):
                (shop.here / name).write_bytes(b'x' * 50)
            (shop.here / 'empty.txt').touch()
            (shop.here / 'names.txt').write_text('2007_000032\n')
            (shop.here / 'one.png').write_bytes(_png())
            shop.select(given, cache=False)

        add('image paths', name, attempt, *words)


# -- look ------------------------------------------------------------------------------------------
def _look(add: Callable[..., None], expect: Callable[[bool, str], None]) -> None:
    def page(*flags: str, prepare: Any = None) -> Attempt:
        """``mmaselect look`` on the photos; a page is there, or an error is told."""

        def attempt(shop: Any) -> None:
            if prepare is not None:
                prepare(shop)
            words = [flag.format(model=shop.pixels, photos=shop.photos) for flag in flags]
            fixed = ['--timesteps', '0,500', '--image-size', '32', '--out', 'x.html']
            stream = io.StringIO()
            from contextlib import redirect_stderr, redirect_stdout

            with redirect_stderr(stream), redirect_stdout(io.StringIO()):
                code = command(['look', *words, *fixed])
            if code != 0:
                raise ValueError(' '.join(stream.getvalue().split()))
            expect(Path('x.html').stat().st_size > 1000, 'no page')

        return attempt

    model = ('--pretrained', '{model}')
    add('look', 'as it is', page('{photos}', *model))
    add('look', 'two photos', page('{photos}/0.png', '{photos}/1.png', *model))
    half = lambda shop: Path('z.png').write_bytes(_png()[:60])  # noqa: E731
    nothing = lambda shop: Path('none').mkdir()  # noqa: E731
    broken = lambda shop: Path('s.json').write_text('{')  # noqa: E731
    for name, flags, prepare, words in (
        ('half an image', ('z.png', *model), half, ['z.png', 'cannot be read']),
        ('a photo that is gone', ('gone.png', *model), None, ['gone.png']),
        ('a folder of nothing', ('none', *model), nothing, ['none', 'holds no images']),
        ('no model', ('{photos}',), None, ['--pretrained', '--config']),
        ('no such model', ('{photos}', '--pretrained', './nowhere'), None, ['./nowhere']),
        ('a block too many', ('{photos}', *model, '--blocks', '99'), None, ['99']),
        ('a slip in a feature', ('{photos}', *model, '--feature', 'querry'), None, ['query']),
        ('a damaged selection', ('{photos}', *model, '--selection', 's.json'), broken, ['s.json']),
        ('no such selection', ('{photos}', *model, '--selection', 'gone.json'), None, ['gone']),
        (
            'flags that exclude each other',
            ('{photos}', *model, '--no-selection', '--selection', 'paper'),
            None,
            ['--selection', '--no-selection'],
        ),
        (
            'calibration of another kind',
            ('{photos}/0.png', *model, '--calibration', 's.json'),
            broken,
            ['s.json', 'no images are read'],
        ),
        ('no images shown', ('{photos}', *model, '--max-images', '0'), None, ['--max-images']),
    ):
        add('look', name, page(*flags, prepare=prepare), *words)

    def another(shop: Any) -> None:
        result = shop.select(cache=False)
        other = FrozenDiT.from_pretrained('mmaselect://dit_cifar10')
        look_at(shop.photos, other, selection=result, progress=False)

    add('look', 'a selection of another model', another, 'another model')


# -- names that are nearly right, on the other faces -----------------------------------------------
def _names(add: Callable[..., None]) -> None:
    faces: dict[str, Callable[..., Any]] = {
        'FeatureExtractor': lambda s, **given: FeatureExtractor(s.pixels, 50, **given),
        'FeaturesOnly': lambda s, **given: FeaturesOnly(s.pixels, 50, **given),
        'TransformersBackbone': lambda s, **given: TransformersBackbone(s.pixels, 50, **given),
        'from_pretrained': lambda s, **given: FrozenDiT.from_pretrained(s.pixels, **given),
        'select': lambda s, **given: select_timestep(s.pixels, s.photos, **given),
        'look_at': lambda s, **given: look_at(s.photos, s.pixels, **given),
        'save_features': lambda s, **given: save_features(
            s.photos, 'o', s.pixels, timestep=0, **given
        ),
    }
    for face, call in faces.items():
        for slip, meant in (('block', 'blocks'), ('featur', 'feature'), ('dtyp', 'dtype')):

            def attempt(shop: Any, call: Any = call, slip: str = slip) -> None:
                call(shop, **{slip: 1})

            is_timm = slip == 'block' and face in ('FeaturesOnly', 'TransformersBackbone')
            add(
                'names',
                f'{slip} of {face}',
                attempt,
                'out_indices' if is_timm else f'is {meant} meant',
            )
    for model, meant in (('mmaselect://dit_cifar', 'dit_cifar10'), ('./photo', './photo')):
        name = f'the model {model}'
        add('names', name, lambda s, m=model: FrozenDiT.from_pretrained(m), meant)
    criterion = lambda s: s.select(criterion='HighFrequncyRatio')  # noqa: E731
    add('names', 'a slip in a criterion', criterion, 'HighFrequencyRatio')
    add('names', 'a slip in a preset', lambda s: s.select(selection='papre'), 'paper')
    slip = lambda s: s.select(selection=dict(num_image=3))  # noqa: E731
    add('names', 'a slip in an option', slip, 'num_images')


# -- what would not be used ------------------------------------------------------------------------
def _unused(add: Callable[..., None]) -> None:
    fixed = ("timestep='auto'", 'timestep is 50')
    for name, attempt, words in (
        (
            'calibration and a timestep',
            lambda s: FeatureExtractor(s.pixels, 50, calibration=s.photos),
            fixed,
        ),
        (
            'selection and a timestep',
            lambda s: save_features(s.photos, 'o', s.pixels, timestep=50, selection='paper'),
            fixed,
        ),
        (
            'selection and a timestep of scikit-learn',
            lambda s: DiTFeatures(s.pixels, 50, selection='paper').fit(s.photos),
            fixed,
        ),
        ('labels and a folder', lambda s: s.select(labels=[1] * 6), ['labels']),
        ('blocks and a loaded model', lambda s: s.select(blocks=[1]), ['blocks', 'loaded']),
        (
            'a bare cache_dir',
            lambda s: FeatureExtractor(s.pixels, 50, cache_dir='c'),
            ['pretrained=dict(cache_dir', 'selection=dict(cache_dir'],
        ),
        (
            'a column of a folder',
            lambda s: save_features(s.photos, 'o', s.pixels, timestep=50, column='image'),
            ['column'],
        ),
    ):
        add('unused', name, attempt, *words)
