# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Random arguments for whatever takes arguments: each works, or is refused in clear words.

An error is clear if code of mmaselect raised it, and its message names a changed argument.
The test suite runs a few hundred; ``python tests/argument_fuzz.py --count 2000`` runs more.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import mmaselect
from mmaselect.apis import FeatureExtractor, save_features, select_timestep
from mmaselect.diffusion import FrozenDiT
from mmaselect.images.sources import build_image_source
from mmaselect.images.views import ViewOptions
from mmaselect.models import ASelecTDiT
from mmaselect.selection import SelectionOptions

PACKAGE = str(Path(mmaselect.__file__).parent)

#: A call that takes longer than this does not end.
SECONDS = 60
#: What nobody means to give, and may give all the same.
JUNK: list[Any] = [
    None, True, False, -1, 0, 1, 1.0, 1.7, -0.5, 1e12, 10**30, float('nan'), float('inf'), '',
    'xyz', '4', 'a:b', b'12', [], {}, (), [None], [1.5], ['xyz'], [[1]], (1, 2), (1, 2, 3),
    {'a': 1}, {'type': 'NoSuch'}, {'type': 5}, {1: 2}, set(), object(), len, np.int64(3),
    np.float32(2.5), np.array([1, 2]), np.zeros((2, 2)), np.array(5), torch.tensor(3),
    Path('no/such/folder'), '../x', '\0', range(3), 'ä' * 300,
]  # fmt: skip

#: A field to values that are right, or nearly.
NEAR: dict[str, list[Any]] = {
    'pretrained': ['mmaselect://../x', 'mmaselect://nope', './none', Path('/nope')],
    'blocks': [0, -1, [0, 2], np.int64(1), np.array([1, 3]), 17, [0, '1'], (5, -6), [2, 2]],
    'feature': ['key', 'output', 'querry', ['query'], 'query_post'],
    'features': ['key', ['query', 'value'], ('output',), ['query', 5]],
    'timestep': ['auto', 0, 999, 1000, -1, np.int32(40), 'automatic', 50.0],
    'condition': [3, 10, 11, 'a cat', np.int64(2)],
    'input_mean': [
        127.5,
        [123.675, 116.28, 103.53],
        (0, 0, 0),
        [1, 2],
        np.ones(3),
        '127',
        [1, 2, 1e300],
    ],
    'input_std': [127.5, [58.395, 57.12, 57.375], 0, [1, 1, 0], -1, np.float64(127.5), 1e300],
    'channel_order': ['rgb', 'bgr', 'RGB'],
    'dtype': ['fp32', 'bf16', torch.float32, 'fp8', torch.int8, 'float16'],
    'noise': ['auto', 'fixed', 'fresh', 'none'],
    'draws': [1, 2, 0],
    'load_kwargs': [
        {},
        dict(low_cpu_mem_usage=False),
        dict(foo=1),
        dict(device_map=5),
        dict(num_layers=2),
    ],
    'variant': ['fp61', None],
    'revision': ['main', 5],
    'local_files_only': [True, 1],
    'base': [None, 'mmaselect://dit_cifar10', 'mmaselect://nope', './none', 'x.pt'],
    'vae': [None, './none', 'x.safetensors', 'mmaselect://dit_cifar10'],
    'original': [None, 'dit', 'sit', 'lightning', dict(model='dit'), dict(heads=2)],
    'lora': [
        None,
        './none',
        'x.safetensors',
        ['x.gguf'],
        dict(path='./none', scale=2),
        dict(path='./none', scale='x'),
        dict(scale=2),
    ],
    'init_cfg': [dict(type='Kaiming'), [dict(type='Constant', val=0)], dict(layer='Conv2d')],
    'selection': ['paper', dict(preset='paper'), dict(preset='book'), dict(num_image=3), 'book'],
    'calibration': [
        './none',
        ['./none'],
        dict(type='CIFAR10', data_prefix='./none'),
        dict(data_root='x'),
    ],
    'criterion': [
        'HighFrequencyRatio',
        dict(type='CrossSpectrumHFR'),
        'FisherScore',
        'NoSuch',
        dict(type='HighFrequencyRatio', cutoff=5),
        dict(type='FisherScore', num_classes=3),
        dict(type='HighFrequencyRatio', dims='3d'),
        dict(cutoff=0.1),
        int,
    ],
    'others': [
        None,
        ['HighFrequencyRatio'],
        'CrossSpectrumHFR',
        dict(type='HighFrequencyRatio'),
        ['NoSuch'],
    ],
    'timesteps': [
        '0:100:50',
        '0:10:0',
        [0, 50],
        np.array([0, 50]),
        '5,6',
        40,
        1000,
        [-1],
        '0:1000000000000:1',
        [0, 50.5],
        '1_0',
        '٣',
    ],
    'num_images': [1, 3, 10**12, np.int16(2), '4'],
    'image_size': [32, (24, 40), [32, 32], None, 10**6, (32,), np.int64(24), (32, 0)],
    'batch_size': [1, 7, np.int64(2), '4', 10**12],
    'seed': [0, 7, 2**32 - 1, 2**32, np.int64(3)],
    'views': [
        None,
        {},
        dict(flip=True),
        dict(scale=(0.5, 0.9)),
        dict(zoom=3),
        dict(noise='shared'),
        'abc',
    ],
    'cache_dir': [None, 'relative/../cache'],
    'array_order': ['rgb', 'bgr', 'xyz'],
    'scale': [(0.5, 1), [0.9, 0.5], (0.2, 0.2), np.array([0.5, 1.0]), (0, 1)],
    'flip': [True, 'yes'],
    'pixels': ['all', 'disjoint', 'none'],
    'labels': [[0, 1, 0, 1], [0, 1], ['a'] * 4],
    'images': [
        [np.zeros((8, 8), np.uint8)] * 2,
        [np.zeros((8, 8, 5), np.uint8)],
        np.zeros((2, 8, 8, 3), np.uint8),
        np.zeros((8, 8, 3), np.uint8),
        [Image.new('RGBA', (9, 8))],
        [np.zeros((8, 8, 3))],
    ],
    'image': [
        np.zeros((8, 8), np.uint8),
        np.zeros((8, 8, 5), np.uint8),
        np.zeros((8, 8, 3)),
        Image.new('F', (8, 8)),
        Image.new('RGBA', (9, 8)),
        torch.zeros(3, 8, 8),
        torch.zeros(8, 8, 3),
        np.zeros((0, 8, 3), np.uint8),
    ],
    'device': ['cpu', 'cuda:99', 'tpu', 'meta'],
    'method': ['race', 'full', 'fast'],
    'confidence': [0.9, 0.5, 1, 0.4, np.float64(0.99)],
    'refine': [None, 1, 25, 50, 60, np.int64(10)],
    'compile': [
        True,
        False,
        {},
        dict(mode='max-autotune'),
        dict(dynamic=True),
        dict(backend='eager'),
        dict(backend='none'),
        dict(mode='slow'),
        dict(foo=1),
    ],
    'cache': [
        'features',
        'latents',
        'maps',
        dict(kind='features', dtype='bf16'),
        dict(kind='latents', max_gb=1),
        dict(kind='latents', max_gb=0),
        dict(kind='latents', dtype='int8'),
        dict(kind='features', folder='x\0'),
        dict(dtype='fp16'),
    ],
    'source': ['checkpoint', 'config', 'file'],
    'fusion': ['concat', 'mean', 'sum'],
    'pool': ['mean', 'max'],
    'store': ['fp16', 'fp64'],
    'shard_size': [1, 3, np.int64(2)],
    'overwrite': [True],
    'out': ['relative\0'],
}

#: A field may be named by one of these instead.
ALSO: dict[str, tuple[str, ...]] = {
    'blocks': ('block',),
    'feature': ('features',),
    'features': ('feature',),
    'selection': ('criterion', *SelectionOptions.__dataclass_fields__),
    'calibration': ('image folder', 'images'),
    'images': ('image', 'calibration'),
    'criterion': ('labels',),
    'input_std': ('pixels span',),
    'input_mean': ('pixels span',),
    'image_size': ('larger images',),
}


@dataclass(frozen=True)
class Target:
    """Something that takes arguments.

    Attributes:
        fields: The arguments.
        call: Is called with some of them; works, or raises.
    """

    fields: tuple[str, ...]
    call: Callable[[dict[str, Any]], Any]


@dataclass
class Outcome:
    """How a run ended.

    Attributes:
        total: Cases of each group.
        accepted: Those that worked.
        refused: Those that were refused in clear words.
        unclear: Descriptions of the others.
    """

    total: Counter = field(default_factory=Counter)
    accepted: Counter = field(default_factory=Counter)
    refused: Counter = field(default_factory=Counter)
    unclear: list[str] = field(default_factory=list)


SELECTION = ('criterion', 'others', 'timesteps', 'num_images', 'image_size', 'batch_size', 'seed',
             'views', 'method', 'confidence', 'refine', 'array_order')  # fmt: skip
SMALL = dict(
    criterion='HighFrequencyRatio', others=(), timesteps=[0, 50], num_images=2, image_size=32
)


#: Entries of a dict that an argument takes: the argument, and the name of its first entry.
ENTRIES = {
    **dict.fromkeys(('draws',), ('noise', 'mode')),
    **dict.fromkeys(('fusion', 'source'), ('timestep', 'steps')),
    **dict.fromkeys(
        (
            'load_kwargs',
            'variant',
            'revision',
            'local_files_only',
            'base',
            'vae',
            'original',
            'lora',
        ),
        ('pretrained', 'model'),
    ),
}


def packed(given: dict[str, Any]) -> dict[str, Any]:
    """Arguments with entries in the dicts that they belong to."""
    arguments = {name: value for name, value in given.items() if name not in ENTRIES}
    for name in ENTRIES.keys() & given.keys():
        argument, first = ENTRIES[name]
        whole = arguments.get(argument, 'auto')
        if not isinstance(whole, dict):
            whole = {first: whole}
        arguments[argument] = {**whole, name: given[name]}
    return arguments


def make_targets(model: str, folder: str, scratch: Path) -> dict[str, Target]:
    """What is called, by its group.

    Args:
        model: A tiny pipeline folder in pixel space, of DiT.
        folder: A few small images.
        scratch: Empty folder.
    """
    dit = FrozenDiT.from_pretrained(model)
    images = [np.full((32, 32, 3), 60 * n, np.uint8) for n in range(4)]

    def backbone(given: dict[str, Any]) -> None:
        selection = {**SMALL, 'cache_dir': scratch / 'cache'}
        config = dict(pretrained=model, timestep=50, calibration=folder, selection=selection)
        built = ASelecTDiT(**packed({**config, **given}))
        # Compiling takes long, and a cache writes: both have tests of their own.
        if not {'calibration', 'selection', 'compile', 'cache'}.intersection(given):
            built.init_weights()
            built(torch.zeros(1, 3, 32, 32))

    def backbone_selection(given: dict[str, Any]) -> None:
        selection = {**SMALL, 'cache_dir': scratch / 'cache', **given}
        built = ASelecTDiT(model, calibration=folder, selection=selection)
        if built.selection.image_size is not None and 'cache_dir' not in given:
            built.init_weights()

    def select(given: dict[str, Any]) -> None:
        config = {'images': images, **SMALL, 'cache': False, 'progress': False}
        # A folder of its own, for relative paths to write to.
        with tempfile.TemporaryDirectory(dir=scratch) as here, contextlib.chdir(here):
            select_timestep(dit, **{**config, **given})

    def extractor(given: dict[str, Any]) -> None:
        given = dict(given)
        image = given.pop('image', images[0])
        device = given.get('device')
        built = FeatureExtractor(**packed({'pretrained': model, 'timestep': 50, **given}))
        if str(device) != 'meta':
            built(image)

    def features(given: dict[str, Any]) -> None:
        if isinstance(given.get('timestep'), str) and given['timestep'] == 'auto':
            return  # 40 timesteps: a test of its own
        with tempfile.TemporaryDirectory(dir=scratch) as out, contextlib.chdir(out):
            config = dict(out=Path(out) / 'features', pretrained=model, timestep=50, progress=False)
            save_features(folder, **{**config, **given})

    return {
        'backbone': Target(
            (
                'pretrained',
                'blocks',
                'feature',
                'timestep',
                'selection',
                'calibration',
                'condition',
                'input_mean',
                'input_std',
                'channel_order',
                'dtype',
                'noise',
                'compile',
                'cache',
                'init_cfg',
                *ENTRIES,
            ),
            backbone,
        ),
        'selection of the backbone': Target((*SELECTION, 'cache_dir'), backbone_selection),
        'select_timestep': Target((*SELECTION[:-1], 'labels', 'images', 'out', 'device'), select),
        'FeatureExtractor': Target(
            (
                'pretrained',
                'timestep',
                'blocks',
                'features',
                'dtype',
                'device',
                'seed',
                'image',
                'condition',
                'load_kwargs',
            ),
            extractor,
        ),
        'save_features': Target(
            (
                'timestep',
                'blocks',
                'features',
                'image_size',
                'pool',
                'store',
                'shard_size',
                'batch_size',
                'seed',
                'overwrite',
                'out',
            ),
            features,
        ),
        'ViewOptions': Target(
            ('scale', 'flip', 'noise', 'pixels'), lambda given: ViewOptions(**given)
        ),
        'calibration': Target(
            ('calibration', 'array_order'),
            lambda given: build_image_source(
                given.get('calibration', folder), given.get('array_order', 'rgb')
            ),
        ),
    }


def run(targets: dict[str, Target], count: int, seed: int) -> Outcome:
    """Call the targets with random arguments.

    Args:
        targets: What is called, by its group.
        count: Calls, all groups together.
        seed: Seed of the arguments.
    """
    signal.signal(signal.SIGALRM, _too_long)
    rng = random.Random(seed)
    outcome = Outcome()
    groups = list(targets)
    weights = [len(target.fields) for target in targets.values()]
    for number in range(count):
        group = rng.choices(groups, weights)[0]
        target = targets[group]
        fields = rng.sample(target.fields, min(len(target.fields), rng.choice((1, 1, 2, 3))))
        given = {}
        for name in fields:
            pool = NEAR[name] if name in NEAR and rng.random() < 0.5 else JUNK
            given[name] = rng.choice(pool)
        outcome.total[group] += 1
        signal.alarm(SECONDS)
        try:
            target.call(given)
        except Exception as error:
            problem = what_is_unclear(error, fields)
            if problem is None:
                outcome.refused[group] += 1
            else:
                outcome.unclear.append(
                    f'#{number} {group} {str(given)[:300]}\n  {problem}\n  '
                    f'{type(error).__name__}: {str(error)[:300]}'
                )
        else:
            outcome.accepted[group] += 1
        finally:
            signal.alarm(0)
    return outcome


def _too_long(*_: Any) -> None:
    raise TimeoutError(f'a call took more than {SECONDS} seconds')


def what_is_unclear(error: Exception, fields: list[str]) -> str | None:
    """Why an error is not clear; None if it is."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    if not frame.filename.startswith(PACKAGE):
        return f'raised in {frame.filename}:{frame.lineno}'
    if not isinstance(error, (ValueError, TypeError, FileNotFoundError)):
        return f'raised in {frame.filename}:{frame.lineno}, as {type(error).__name__}'
    words = {word for name in fields for word in (name, *ALSO.get(name, ()))}
    if not any(word in str(error) for word in words):
        return f'raised in {frame.filename}:{frame.lineno}, names none of {sorted(words)}'
    return None


def main() -> int:
    """Run as a script; the exit code says whether all was clear."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--count', type=int, default=2000, help='calls; default: 2000')
    parser.add_argument('--seed', type=int, default=0, help='of the arguments; default: 0')
    args = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parent))
    from tiny_dit import save_tiny_dit

    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        model = save_tiny_dit(scratch / 'model', latent=False)
        (scratch / 'photos').mkdir()
        for number in range(3):
            noise = np.random.default_rng(number).integers(0, 256, (40, 48, 3), dtype=np.uint8)
            Image.fromarray(noise).save(scratch / 'photos' / f'{number}.png')
        targets = make_targets(str(model), str(scratch / 'photos'), scratch)
        outcome = run(targets, args.count, args.seed)
    print(f'{"group":28}{"calls":>7}{"worked":>8}{"refused":>9}{"unclear":>9}')
    for group, total in outcome.total.items():
        worked, refused = outcome.accepted[group], outcome.refused[group]
        print(f'{group:28}{total:7}{worked:8}{refused:9}{total - worked - refused:9}')
    print(f'{args.count} calls, {len(outcome.unclear)} unclear')
    print('\n'.join(outcome.unclear))
    return min(1, len(outcome.unclear))


if __name__ == '__main__':
    sys.exit(main())
