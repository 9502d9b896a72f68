# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Faults of every kind that a user meets: each is survived with the right result, or refused.

A refusal is clear if it contains the words that its fault is listed with: which thing, and what is
wrong with it. Everything else counts as wrong (no error, and not the right result) or as unclear.

    python tests/fault_matrix.py                 # all of them, and a table by group
    python tests/fault_matrix.py --group images  # some
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import multiprocessing
import os
import resource
import runpy
import shutil
import signal
import socket
import sys
import tempfile
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from given_faults import given_faults
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.registry import HOOKS
from mmengine.runner import load_checkpoint
from PIL import Image, PngImagePlugin
from stored_faults import stored_faults

from mmaselect import select_timestep
from mmaselect.diffusion import FrozenDiT
from mmaselect.images import CalibrationSet, ImageFolder
from mmaselect.images.sources import build_image_source
from mmaselect.models import ASelecTDiT
from mmaselect.openmmlab.checkpoints import WholeFileBackend
from mmaselect.report.plot import save_selection
from mmaselect.selection import Sweep

ROOT = Path(__file__).resolve().parents[1]
GRID = [0, 250, 500, 750]
#: A small selection: whatever surrounds it is what is tried here.
SMALL = dict(
    criterion='HighFrequencyRatio', others=(), timesteps=GRID, num_images=6, progress=False
)
WEIGHTS = 'diffusion_pytorch_model.safetensors'
#: What a clear refusal is raised as.
KINDS = (
    *(ValueError, TypeError, OSError, FileNotFoundError, RuntimeError, FloatingPointError),
    *(KeyError, SystemExit),
)


class Wrong(Exception):
    """Something was accepted, and its result is not the right one."""


def expect(condition: bool, what: str) -> None:
    """Raise :class:`Wrong` unless a condition holds."""
    if not condition:
        raise Wrong(what)


class Workshop:
    """What a fault is tried on.

    Attributes:
        here: An empty folder of its own.
        log: What was logged.
    """

    def __init__(self, root: Path) -> None:
        from tiny_dit import save_tiny_dit

        self.root = root
        self.pixels = save_tiny_dit(root / 'pixels', latent=False)
        self.latents = save_tiny_dit(root / 'latents', latent=True)
        self.photos = root / 'photos'
        self.photos.mkdir()
        rng = np.random.default_rng(0)
        for number in range(6):
            rough = rng.integers(0, 256, (8, 10, 3), dtype=np.uint8)
            Image.fromarray(rough).resize((50, 40)).save(self.photos / f'{number}.png')
        self.here = root
        self._count = 0
        self.log = io.StringIO()
        os.environ['MMASELECT_CACHE'] = str(root / 'cache')
        self.dit = FrozenDiT.from_pretrained(self.pixels, blocks=[2])
        self.clean = self.select().timestep

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """A fresh folder, an empty cache and an empty log."""
        self._count += 1
        self.here = self.root / f'{self._count:03d}'
        self.here.mkdir()
        os.environ['MMASELECT_CACHE'] = str(self.here / 'cache')
        self.log = io.StringIO()
        handler = logging.StreamHandler(self.log)
        logger = MMLogger.get_current_instance()
        logger.addHandler(handler)
        try:
            with contextlib.chdir(self.here):
                yield
        finally:
            logger.removeHandler(handler)
            shutil.rmtree(self.here, ignore_errors=True)

    def select(self, images: Any = None, **options: Any) -> Any:
        """A small selection."""
        images = self.photos if images is None else images
        return select_timestep(options.pop('model', self.dit), images, **{**SMALL, **options})

    def folder(self) -> Path:
        """A copy of the photos."""
        return Path(shutil.copytree(self.photos, self.here / 'images'))

    def model(self, latent: bool = True) -> Path:
        """A copy of a pipeline folder."""
        return Path(shutil.copytree(self.latents if latent else self.pixels, self.here / 'model'))

    def says(self, *words: str) -> None:
        """Check that the log has these words."""
        text = self.log.getvalue()
        for word in words:
            expect(word in text, f'the log lacks {word!r}: {text[-300:]!r}')


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong.

    Attributes:
        group: Group that it belongs to.
        name: What it is.
        attempt: Makes it go wrong, does what a user does, and checks the result.
        words: A refusal must contain each; none if it must be survived.
        may: Whether it may be survived as well as refused.
    """

    group: str
    name: str
    attempt: Callable[[Workshop], Any]
    words: tuple[str, ...] = ()
    may: bool = False


FAULTS: list[Fault] = []


def add(
    group: str, name: str, attempt: Callable[[Workshop], Any], *words: str, **more: Any
) -> None:
    """List a fault."""
    FAULTS.append(Fault(group, name, attempt, words, **more))


def judge(fault: Fault, shop: Workshop) -> tuple[str, str]:
    """Try a fault. ``'right'``, ``'clear'``, ``'wrong'`` or ``'unclear'``, and why."""
    with shop.place(), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        try:
            fault.attempt(shop)
        except Wrong as error:
            return 'wrong', str(error)
        except BaseException as error:
            text = f'{error.code if isinstance(error, SystemExit) else error}'
            missing = [word for word in fault.words if word not in text]
            clear = isinstance(error, KINDS) and fault.words and not missing
            return 'clear' if clear else 'unclear', f'{type(error).__name__}: {text[:400]}'
        if fault.words and not fault.may:
            return 'wrong', 'it was accepted'
        return 'right', ''


# -- what was stored -------------------------------------------------------------------------------
def _stored(damage: Callable[[Path], Any], told: bool = True) -> Callable[[Workshop], None]:
    def attempt(shop: Workshop) -> None:
        shop.select()
        (entry,) = (shop.here / 'cache' / 'selections').glob('*.json')
        damage(entry)
        result = shop.select()
        expect(result.timestep == shop.clean, f'picked {result.timestep}, not {shop.clean}')
        if told:
            shop.says('cannot be used', str(entry))

    return attempt


def _edit(**changes: Any) -> Callable[[Path], Any]:
    def damage(entry: Path) -> None:
        entry.write_text(json.dumps({**json.loads(entry.read_text()), **changes}))

    return damage


def _edit_curve(change: Callable[[list[dict[str, Any]]], Any]) -> Callable[[Path], Any]:
    def damage(entry: Path) -> None:
        data = json.loads(entry.read_text())
        change(data['curve'])
        entry.write_text(json.dumps(data))

    return damage


def _another_best(entry: Path) -> None:
    data = json.loads(entry.read_text())
    next(p for p in data['curve'] if p['timestep'] != data['timestep']).update(score=1e9)
    entry.write_text(json.dumps(data))


def _in_its_place(make: Callable[[Path], Any]) -> Callable[[Path], Any]:
    def damage(entry: Path) -> None:
        entry.unlink()
        make(entry)

    return damage


def _drop(name: str) -> Callable[[Path], Any]:
    def damage(entry: Path) -> None:
        data = json.loads(entry.read_text())
        del data[name]
        entry.write_text(json.dumps(data))

    return damage


for _content in (
    b'',
    b'{',
    b'[]',
    b'null',
    b'7',
    b'"x"',
    b'\xff\xfe\x00',
    b'{"a": 1}',
    b'[' * 100_000,
    b'\0' * 4096,
):
    add(
        'stored selections',
        f'content {_content[:12]!r}',
        _stored(lambda entry, content=_content: entry.write_bytes(content)),
    )
add(
    'stored selections',
    'cut in half',
    _stored(lambda entry: entry.write_bytes(entry.read_bytes()[: entry.stat().st_size // 2])),
)
add(
    'stored selections',
    'words behind its end',
    _stored(lambda entry: entry.write_bytes(entry.read_bytes() + b'x')),
)
for _value in (250.0, '250', -1, 10**9, True, None, [0], 111):
    add('stored selections', f'timestep {_value!r}', _stored(_edit(timestep=_value)))
for _name, _value in (
    ('key', 'abc'),
    ('blocks', '2'),
    ('num_images', 0),
    ('seconds', 'long'),
    ('model_evaluations', -3),
    ('settings', {}),
    ('warnings', [1]),
    ('curve', []),
    ('curve', 5),
    ('interval', [900, 3]),
    ('per_tap', {}),
    ('others', []),
    ('noise_level', 99.0),
    ('unknown', 1),
):
    add('stored selections', f'{_name} {_value!r}', _stored(_edit(**{_name: _value})))
for _name in ('timestep', 'curve', 'settings', 'key', 'criterion', 'others'):
    add('stored selections', f'without {_name}', _stored(_drop(_name)))
add(
    'stored selections',
    'another best point',
    _stored(_another_best),
)
add(
    'stored selections',
    'a score that is not a number',
    _stored(_edit_curve(lambda points: points[0].update(score='high'))),
)
add(
    'stored selections',
    'a score of NaN',
    _stored(_edit_curve(lambda points: points[1].update(score=float('nan')))),
)
add('stored selections', 'a point missing', _stored(_edit_curve(lambda points: points.pop())))
add('stored selections', 'a folder in its place', _stored(_in_its_place(Path.mkdir)))
add(
    'stored selections',
    'a link to nothing in its place',
    _stored(_in_its_place(lambda e: e.symlink_to(e.with_name('nowhere'))), told=False),
)
add(
    'stored selections',
    'a link to itself in its place',
    _stored(_in_its_place(lambda e: e.symlink_to(e))),
)


# -- where it is stored ----------------------------------------------------------------------------
def _cache(prepare: Callable[[Workshop], str], told: bool = True) -> Callable[[Workshop], None]:
    def attempt(shop: Workshop) -> None:
        os.environ['MMASELECT_CACHE'] = prepare(shop)
        result = shop.select()
        expect(result.timestep == shop.clean, f'picked {result.timestep}, not {shop.clean}')
        if told:
            shop.says('cannot be')

    return attempt


def _touch(path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return str(path)


def _as_nobody(action: Callable[[], Any]) -> Any:
    """As a user whom the rights of files concern."""
    if os.geteuid() != 0:
        return action()
    os.seteuid(65534)
    try:
        return action()
    finally:
        os.seteuid(0)


def _read_only_cache(shop: Workshop) -> None:
    cache = shop.here / 'cache'
    cache.mkdir()
    cache.chmod(0o555)
    for path in (shop.root, shop.here):
        path.chmod(0o755)
    result = _as_nobody(shop.select)
    expect(result.timestep == shop.clean, f'picked {result.timestep}')
    shop.says('cannot be stored')


def _full_disk(action: Callable[[], Any], size: int) -> Any:
    """No file can grow beyond a size: what a full disk does to a write."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        return action()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


def _full_disk_for_the_cache(shop: Workshop) -> None:
    result = _full_disk(shop.select, 100)
    expect(result.timestep == shop.clean, f'picked {result.timestep}')
    shop.says('cannot be stored')
    expect(not list((shop.here / 'cache').rglob('*.json')), 'half an entry was left')
    expect(shop.select().timestep == shop.clean, 'the next start picks something else')


def _killed_between_write_and_rename(shop: Workshop) -> None:
    pid = os.fork()
    if pid == 0:
        os.replace = lambda *_: os._exit(9)
        os.rename = os.replace
        Path.replace = lambda *_: os._exit(9)
        shop.select()
        os._exit(0)
    expect(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9, 'it was not killed')
    expect(shop.select().timestep == shop.clean, 'another pick after a kill')
    left = [path.name for path in (shop.here / 'cache' / 'selections').rglob('*') if path.is_file()]
    expect(len(left) == 1 and left[0].endswith('.json'), f'left behind: {left}')


for _name, _prepare in {
    'a file in place of the folder': lambda s: _touch(s.here / 'file'),
    'a file above the folder': lambda s: _touch(s.here / 'file') + '/below',
    'a path in /proc': lambda s: '/proc/mmaselect',
    'too long a name': lambda s: str(s.here / ('x' * 300)),
    'too long a path': lambda s: str(s.here) + '/abcdefgh' * 600,
    'a link to nothing': lambda s: (s.here / 'l').symlink_to('/proc/none/x') or str(s.here / 'l'),
    'a link to itself': lambda s: (s.here / 'l').symlink_to(s.here / 'l') or str(s.here / 'l'),
    '/dev/null': lambda s: '/dev/null',
}.items():
    add('cache folders', _name, _cache(_prepare))
for _name, _prepare in {
    'a relative path': lambda s: 'cache/../else',
    'spaces, umlauts, quotes': lambda s: str(s.here / 'a b/ä\'ö"日本'),
    'empty': lambda s: str(s.here / 'home'),
}.items():
    add('cache folders', _name, _cache(_prepare, told=False))
add('cache folders', 'mode 555', _read_only_cache)
add('cache folders', 'a full disk', _full_disk_for_the_cache)
add('cache folders', 'a kill between write and rename', _killed_between_write_and_rename)


def _two_at_once(shop: Workshop) -> None:
    children = []
    for _ in range(3):
        pid = os.fork()
        if pid == 0:
            os._exit(0 if shop.select().timestep == shop.clean else 3)
        children.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    expect(codes == [0, 0, 0], f'exit codes {codes}')
    expect(len(list((shop.here / 'cache').rglob('*.json'))) == 1, 'not one entry')


add('cache folders', 'three processes at once', _two_at_once)


# -- what a stored selection depends on ------------------------------------------------------------
def _key(shop: Workshop, model: Path, images: Path, **options: Any) -> str:
    dit = FrozenDiT.from_pretrained(model, blocks=[2], **options)
    chosen = CalibrationSet(ImageFolder(images), dit.native_size, 4, 0)
    options = dict(timesteps=[0, 500], criterion='HighFrequencyRatio', others=[])
    sweep = Sweep(dit, chosen, options)
    from mmaselect.selection.result import settings_key

    return settings_key(sweep.settings())


def _changes(
    change: Callable[[Path, Path], Any], differs: bool = True, **options: Any
) -> Callable[[Workshop], None]:
    def attempt(shop: Workshop) -> None:
        model, images = shop.model(), shop.folder()
        before = _key(shop, model, images)
        change(model, images)
        changed = _key(shop, model, images, **options) != before
        expect(changed is differs, 'the stored result is ' + ('' if changed else 'not ') + 'redone')

    return attempt


def _config(part: str, **changes: Any) -> Callable[[Path, Path], Any]:
    def change(model: Path, images: Path) -> None:
        file = model / part
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    return change


def _one_weight(part: str, name: str, index: int) -> Callable[[Path, Path], Any]:
    def change(model: Path, images: Path) -> None:
        file = model / part / WEIGHTS
        stat = file.stat()
        weights = safetensors.torch.load_file(file)
        weights[name].view(-1)[index] += 1e-3
        safetensors.torch.save_file(weights, file, metadata={'format': 'pt'})
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # size and time as they were

    return change


def _other_pixels(model: Path, images: Path) -> None:
    """Of equal size and time."""
    file = images / '3.png'
    stat = file.stat()
    pixels = np.asarray(Image.open(file)).copy()
    pixels[10, 10] = 255 - pixels[10, 10]
    Image.fromarray(pixels).save(file)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))


_Q = 'transformer_blocks.1.attn1.to_q.weight'
for _name, _change in {
    'first weight of a block': _one_weight('transformer', _Q, 0),
    'second weight of a block': _one_weight('transformer', _Q, 1),
    'last weight of a block': _one_weight('transformer', _Q, -1),
    'a weight of the patch embedding': _one_weight('transformer', 'pos_embed.proj.bias', 2),
    'a weight of the VAE': _one_weight('vae', 'encoder.conv_in.weight', 5),
    'betas of the scheduler': _config('scheduler/scheduler_config.json', beta_end=0.03),
    'steps of the scheduler': _config('scheduler/scheduler_config.json', num_train_timesteps=800),
    'prediction type of the scheduler': _config(
        'scheduler/scheduler_config.json', beta_schedule='scaled_linear'
    ),
    'epsilon of the norms': _config('transformer/config.json', norm_eps=1e-3),
    'scaling of the VAE': _config('vae/config.json', scaling_factor=0.4),
    'pixels of an image': _other_pixels,
    'an image more': lambda m, i: shutil.copy(i / '0.png', i / '9.png'),
    'an image less': lambda m, i: (i / '0.png').unlink(),
}.items():
    add('what a pick depends on', _name, _changes(_change))
add('what a pick depends on', 'condition', _changes(lambda m, i: None, condition=3))
add('what a pick depends on', 'precision', _changes(lambda m, i: None, dtype='bf16'))
add('what a pick depends on', 'nothing', _changes(lambda m, i: None, differs=False))
add(
    'what a pick depends on',
    'a weight of a block behind it',
    _changes(
        _one_weight('transformer', 'transformer_blocks.5.attn1.to_q.weight', 1), differs=False
    ),
)
add(
    'what a pick depends on',
    'times of the files',
    _changes(
        lambda m, i: [os.utime(f, (1, 1)) for f in (*m.rglob('*.*'), *i.rglob('*.*'))],
        differs=False,
    ),
)
add(
    'what a pick depends on',
    'a text file beside',
    _changes(lambda m, i: (m / 'README.md').write_text('x'), differs=False),
)


# -- what is written -------------------------------------------------------------------------------
def _report(prepare: Callable[[Path], Any], told: bool = True) -> Callable[[Workshop], None]:
    def attempt(shop: Workshop) -> None:
        out = shop.here / 'out'
        prepare(out)
        result = shop.select(out=out)
        expect(result.timestep == shop.clean, 'another pick')
        if told:
            shop.says('cannot be written')

    return attempt


for _name, _prepare in {
    'a file in place of the folder': lambda out: _touch(out),
    'a folder in place of selection.json': lambda out: (out / 'selection.json').mkdir(parents=True),
    'a folder in place of selection.png': lambda out: (out / 'selection.png').mkdir(parents=True),
    'a link to nothing': lambda out: out.symlink_to('/proc/none/x'),
}.items():
    add('written files', _name, _report(_prepare))


def _full_disk_for_the_report(shop: Workshop) -> None:
    result = _full_disk(lambda: shop.select(out=shop.here / 'out', cache=False), 100)
    expect(result.timestep == shop.clean, 'another pick')
    shop.says('cannot be written')
    expect(not list((shop.here / 'out').glob('*')), 'half a file was left')


def _report_over_an_old_one(shop: Workshop) -> None:
    out = shop.here / 'out'
    first = shop.select(out=out)
    before = (out / 'selection.json').read_bytes()
    _full_disk(lambda: save_selection(first, out), 100)
    expect((out / 'selection.json').read_bytes() == before, 'the old file was lost')


add('written files', 'a full disk', _full_disk_for_the_report)
add('written files', 'a full disk over an old file', _report_over_an_old_one)


# -- images in a folder ----------------------------------------------------------------------------
def _among(name: str, make: Callable[[Path, Image.Image], Any]) -> Callable[[Workshop], None]:
    """A folder in which one file is another: the pick is that of the pixels it should have."""

    def attempt(shop: Workshop) -> None:
        images = shop.folder()
        photo = Image.open(images / '5.png').copy()
        (images / '5.png').unlink()
        expected = make(images / name, photo)
        arrays = [np.asarray(Image.open(images / f'{n}.png')) for n in range(5)]
        if expected is not None:
            arrays.append(expected)
        got = shop.select(images, cache=False)
        right = shop.select(arrays, cache=False)
        expect(got.num_images == right.num_images, f'{got.num_images} images')
        expect(
            np.allclose(got.curve.scores, right.curve.scores, atol=2e-3),
            f'scores {got.curve.scores}, not {right.curve.scores}',
        )

    return attempt


def _saved(mode: str = 'RGB', **options: Any) -> Callable[[Path, Image.Image], Any]:
    def make(path: Path, photo: Image.Image) -> Any:
        photo.convert(mode).save(path, **options)
        return np.asarray(photo.convert(mode).convert('RGB'))

    return make


def _turned(orientation: int, turn: int) -> Callable[[Path, Image.Image], Any]:
    def make(path: Path, photo: Image.Image) -> Any:
        exif = Image.Exif()
        exif[0x0112] = orientation
        photo.save(path, exif=exif)
        return np.asarray(photo.transpose(turn))

    return make


def _array(array: np.ndarray, expected: Any = None) -> Callable[[Path, Image.Image], Any]:
    def make(path: Path, photo: Image.Image) -> Any:
        Image.fromarray(array).save(path)
        return expected

    return make


def _bytes(content: bytes | Callable[[bytes], bytes]) -> Callable[[Path, Image.Image], Any]:
    def make(path: Path, photo: Image.Image) -> Any:
        photo.save(path)
        path.write_bytes(content(path.read_bytes()) if callable(content) else content)

    return make


def _special(kind: str) -> Callable[[Path, Image.Image], Any]:
    def make(path: Path, photo: Image.Image) -> Any:
        if kind == 'pipe':
            os.mkfifo(path)
        elif kind == 'socket':
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(path.name if len(str(path)) > 100 else str(path))
            listener.close()
        elif kind == 'folder':
            path.mkdir()
        elif kind == 'loop':
            path.symlink_to(path.parent)
        elif kind == 'link to nothing':
            path.symlink_to('nowhere')
        elif kind == 'hidden':
            photo.save(path.parent / '.hidden.png')
        elif kind == 'resource fork':
            (path.parent / '._5.png').write_bytes(b'Mac OS X')
        elif kind == 'checkpoints':
            (path.parent / '.ipynb_checkpoints').mkdir()
            photo.save(path.parent / '.ipynb_checkpoints' / '5-checkpoint.png')
        elif kind == 'text':
            path.with_suffix('.txt').write_text('notes')

    return make


def _linked(path: Path, photo: Image.Image) -> Any:
    elsewhere = path.parent.parent / 'elsewhere.png'
    photo.save(elsewhere)
    path.symlink_to(elsewhere)
    return np.asarray(photo)


def _in_a_sub_folder(path: Path, photo: Image.Image) -> Any:
    path.parent.mkdir(parents=True, exist_ok=True)
    photo.save(path)
    return np.asarray(photo)


def _with_alpha(path: Path, photo: Image.Image) -> Any:
    image = np.dstack([np.asarray(photo), np.full((40, 50), 255, np.uint8)])
    Image.fromarray(image).save(path)
    return np.asarray(photo)


def _long_text(path: Path, photo: Image.Image) -> Any:
    info = PngImagePlugin.PngInfo()
    info.add_text('comment', 'x' * 100_000)
    photo.save(path, pnginfo=info)
    return np.asarray(photo)


def _ramp16(path: Path, photo: Image.Image) -> Any:
    ramp = np.linspace(0, 65535, 40 * 50).astype(np.uint16).reshape(40, 50)
    Image.fromarray(ramp).save(path)
    return np.dstack([(ramp >> 8).astype(np.uint8)] * 3)


def _several_pages(path: Path, photo: Image.Image) -> Any:
    photo.save(path, save_all=True, append_images=[photo.rotate(90)])
    return np.asarray(photo)


def _jpeg_pixels(path: Path, photo: Image.Image, **options: Any) -> Any:
    photo.save(path, **options)
    return np.asarray(Image.open(path).convert('RGB'))


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
for _orientation, _turn in _TURNS.items():
    add('images', f'EXIF orientation {_orientation}', _among('z.png', _turned(_orientation, _turn)))
for _name, _file, _make in (
    ('gray', 'z.png', _saved('L')),
    ('one bit', 'z.png', _saved('1')),
    ('a palette', 'z.png', _saved('P')),
    ('16 bits', 'z.png', _ramp16),
    ('opaque alpha', 'z.png', _with_alpha),
    ('CMYK', 'z.tiff', _saved('CMYK')),
    ('several pages', 'z.tiff', _several_pages),
    ('bitmap', 'z.bmp', _saved()),
    ('WebP without loss', 'z.webp', _saved(lossless=True)),
    ('progressive JPEG', 'z.jpg', lambda p, i: _jpeg_pixels(p, i, progressive=True)),
    ('capitals in the suffix', 'Z.JPG', lambda p, i: _jpeg_pixels(p, i, format='JPEG')),
    ('PNG named .jpg', 'z.jpg', _saved(format='PNG')),
    ('JPEG named .png', 'z.png', lambda p, i: _jpeg_pixels(p, i, format='JPEG')),
    ('a long comment', 'z.png', _long_text),
    ('a link', 'z.png', _linked),
    ('a sub-folder', 'z/y/x.png', _in_a_sub_folder),
    ('Unicode in the name', 'zä日本.png', _in_a_sub_folder),
    ('a line break in the name', 'z\nz.png', _in_a_sub_folder),
    ('a name that is not a UTF-8', os.fsdecode(b'z\xff.png'), _in_a_sub_folder),
    ('percent and braces in the name', 'z%s{0}.png', _in_a_sub_folder),
    (
        'one pixel',
        'z.png',
        _array(np.full((1, 1, 3), 99, np.uint8), np.full((1, 1, 3), 99, np.uint8)),
    ),
    (
        'a strip of 1 x 3000',
        'z.png',
        _array(np.full((1, 3000, 3), 9, np.uint8), np.full((1, 3000, 3), 9, np.uint8)),
    ),
    *(
        (kind, 'z.png', _special(kind))
        for kind in (
            'pipe',
            'socket',
            'folder',
            'loop',
            'link to nothing',
            'hidden',
            'resource fork',
            'checkpoints',
            'text',
        )
    ),
):
    add('images', _name, _among(_file, _make))
for _name, _content in (
    ('empty', b''),
    ('text', b'this is not an image'),
    ('HTML', b'<html>404</html>'),
    ('cut in half', lambda data: data[: len(data) // 2]),
    ('header alone', lambda d: d[:20]),
    ('zeros', b'\0' * 5000),
    ('a Git LFS pointer', b'version https://git-lfs.github.com/spec/v1\n'),
    ('damaged in the middle', lambda d: d[:60] + b'\0' * 300 + d[360:]),
):
    add('images', f'file: {_name}', _among('z.png', _bytes(_content)), 'z.png', 'cannot be read')
add('images', 'JPEG cut in half', _among('z.jpg', _bytes(lambda d: d[: len(d) // 2])), 'z.jpg')
add(
    'images', 'float TIFF', _among('z.tiff', _array(np.ones((9, 9), np.float32))), 'z.tiff', 'range'
)
add('images', '32-bit TIFF', _among('z.tiff', _array(np.ones((9, 9), np.int32))), 'z.tiff', 'range')


def _bomb(shop: Workshop) -> None:
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, 100
    try:
        shop.select(cache=False)
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _private(shop: Workshop) -> None:
    images = shop.folder()
    for path in (shop.root, shop.here, images):
        path.chmod(0o755)
    (images / 'private').mkdir()
    (images / 'private').chmod(0)
    _as_nobody(lambda: shop.select(images, cache=False))


def _gone_in_between(shop: Workshop) -> None:
    images = shop.folder()
    source = build_image_source(str(images))
    (images / '3.png').unlink()
    source.load(3)


add('images', 'decompression bomb', _bomb, '0.png', 'decompression bomb')
add('images', 'a private sub-folder', _private, 'private', 'cannot be read')
add('images', 'deleted while it runs', _gone_in_between, '3.png', 'cannot be read')
add('images', 'no such folder', lambda s: s.select('nowhere'), 'nowhere', 'does not exist')
add('images', 'an empty folder', lambda s: s.select(_made(s.here / 'x')), 'holds no images')
add(
    'images', 'a file in place of the folder', lambda s: s.select(_touch(s.here / 'x.png')), 'x.png'
)
add('images', 'a list of nothing', lambda s: s.select([]), 'empty')


def _made(path: Path) -> Path:
    path.mkdir(parents=True)
    return path


for _name, _value, _words in (
    ('channels first', np.zeros((3, 8, 8), np.uint8), ('channels come last',)),
    ('five channels', np.zeros((8, 8, 5), np.uint8), ('RGB', '5 channels')),
    ('two channels', np.zeros((8, 8, 2), np.uint8), ('RGB',)),
    ('floats', np.full((8, 8, 3), 255.0), ('image 0', 'floats', '0 to 1')),
    ('booleans', np.zeros((8, 8, 3), bool), ('bool', 'scale')),
    ('signed bytes', np.zeros((8, 8, 3), np.int8), ('int8',)),
    ('no rows', np.zeros((0, 8, 3), np.uint8), ('(0, 8, 3)',)),
    ('objects', np.array([[None]]), ('image 0',)),
    ('None', None, ('image 0',)),
    ('a number', 5, ('image 0',)),
    ('a float image of Pillow', Image.new('F', (8, 8)), ('image 0', 'range')),
):
    add(
        'images in memory',
        _name,
        lambda s, value=_value: s.select([value] * 3, cache=False),
        *_words,
    )
for _name, _value in (
    ('gray', lambda n: np.full((8, 8), n, np.uint8)),
    ('one channel', lambda n: np.full((8, 8, 1), n, np.uint8)),
    ('transparent', lambda n: np.full((8, 8, 4), [n, n, n, 255], np.uint8)),
    ('not contiguous', lambda n: np.full((16, 16, 3), n, np.uint8)[::2, ::-2]),
    ('read-only', lambda n: np.frombuffer(bytes([n] * 192), np.uint8).reshape(8, 8, 3)),
    ('a palette of Pillow', lambda n: Image.new('RGB', (8, 8), (n, 0, 0)).convert('P')),
    ('16 bits', lambda n: np.full((8, 8), 256 * n, np.uint16)),
):
    add(
        'images in memory',
        _name,
        lambda s, v=_value: s.select([v(n) for n in (0, 99, 200)], cache=False),
    )
add(
    'images in memory',
    'of different sizes',
    lambda s: s.select([np.full((n, 2 * n, 3), n, np.uint8) for n in (5, 40, 77)], cache=False),
)
add(
    'images in memory',
    'one image, not a list',
    lambda s: s.select(np.zeros((8, 8, 3), np.uint8)),
    'one image',
    'list',
)
add(
    'images in memory',
    'one batch array',
    lambda s: s.select(np.arange(4 * 192, dtype=np.uint8).reshape(4, 8, 8, 3)),
)
add(
    'images in memory',
    'labels of another number',
    lambda s: s.select([np.zeros((8, 8, 3), np.uint8)] * 3, labels=[1]),
    'labels',
    '3',
)


# -- data sets -------------------------------------------------------------------------------------
def _dataset(**config: Any) -> Callable[[Workshop], None]:
    """A config of MMPretrain's data set on class folders, with a mistake."""

    def attempt(shop: Workshop) -> None:
        root = shop.here / 'data'
        for label in 'ab':
            shutil.copytree(shop.photos, root / label)
        import mmpretrain.datasets  # noqa: F401

        base = dict(type='mmpretrain.CustomDataset', data_root=str(root), pipeline=[])
        given = {**base, **{k: v for k, v in config.items() if k != 'wrap'}}
        wrap = config.get('wrap', lambda inner: inner)
        source = build_image_source(wrap(given))
        expect(source.load(len(source) - 1).shape == (40, 50, 3), 'not the image')

    return attempt


_load = dict(type='LoadImageFromFile')
for _name, _given, _words in (
    ('no such type', dict(type='NoSuch'), ('NoSuch',)),
    ('no such folder', dict(data_root='nowhere'), ('nowhere',)),
    ('no such annotation file', dict(ann_file='nowhere.txt'), ('nowhere.txt',)),
    ('an unknown argument', dict(colour='red'), ('colour',)),
    ('a type that is a number', dict(type=5), ('type',)),
    (
        'a backend that does not exist',
        dict(pipeline=[dict(_load, backend_args=dict(backend='nope'))]),
        ('nope',),
    ),
    (
        'a step that does not exist',
        dict(pipeline=[dict(type='LoadImageFromMars')]),
        ('LoadImageFromMars',),
    ),
    ('a wrapper around nothing', dict(wrap=lambda d: dict(type='RepeatDataset')), ('dataset',)),
):
    add('data sets', _name, _dataset(**_given), *_words)
for _name, _given in (
    ('no pipeline', {}),
    ('a pipeline with augmentation', dict(pipeline=[_load, dict(type='PackInputs')])),
    ('another decoder', dict(pipeline=[dict(_load, imdecode_backend='pillow')])),
    ('repeated', dict(wrap=lambda d: dict(type='RepeatDataset', dataset=d, times=3))),
    ('concatenated', dict(wrap=lambda d: dict(type='ConcatDataset', datasets=[d, d]))),
    (
        'class balanced',
        dict(wrap=lambda d: dict(type='ClassBalancedDataset', dataset=d, oversample_thr=1e-3)),
    ),
    (
        'wrapped twice',
        dict(
            wrap=lambda d: dict(
                type='RepeatDataset', times=2, dataset=dict(type='ConcatDataset', datasets=[d])
            )
        ),
    ),
    ('lazy', dict(lazy_init=True)),
    ('test mode', dict(test_mode=True)),
    ('indices', dict(indices=3)),
):
    add('data sets', _name, _dataset(**_given))


# -- arguments -------------------------------------------------------------------------------------
def _backbone(**given: Any) -> Callable[[Workshop], None]:
    def attempt(shop: Workshop) -> None:
        config = dict(pretrained=str(shop.pixels), timestep=50, blocks=[2])
        built = ASelecTDiT(**{**config, **given})
        built.init_weights()
        built(torch.zeros(1, 3, 32, 32))

    return attempt


def _selection(**given: Any) -> Callable[[Workshop], None]:
    def attempt(shop: Workshop) -> None:
        options = dict(criterion='HighFrequencyRatio', others=(), timesteps=GRID, num_images=4)
        built = ASelecTDiT(
            str(shop.pixels),
            blocks=[2],
            calibration=str(shop.photos),
            selection={**options, **given},
        )
        built.init_weights()
        expect(built.timestep in GRID, f'timestep {built.timestep}')

    return attempt


for _name, _value in (
    ('num_images', 10**12),
    ('num_images', '4'),
    ('num_images', 1.7),
    ('num_images', 0),
    ('batch_size', '4'),
    ('batch_size', 0),
    ('batch_size', True),
    ('seed', -1),
    ('seed', 'x'),
    ('image_size', 0),
    ('image_size', 'big'),
    ('image_size', (32, 0)),
    ('array_order', 'xyz'),
    ('timesteps', '0:10:0'),
    ('timesteps', []),
    ('timesteps', [0, 5000]),
    ('timesteps', b'12'),
    ('timesteps', [0, 50.5]),
    ('criterion', 'NoSuch'),
    ('criterion', dict(cutoff=0.1)),
    ('criterion', dict(type='HighFrequencyRatio', cutoff=5)),
    ('others', 'abc'),
    ('views', 'abc'),
    ('views', dict(zoom=3)),
    ('num_image', 4),
):
    # One that is not known to be too many until the images are counted may also be taken as all.
    add(
        'arguments',
        f'selection.{_name}={_value!r}',
        _selection(**{_name: _value}),
        _name,
        may=_value == 10**12,
    )
for _name, _value, _word in (
    ('pretrained', 'mmaselect://../x', 'mmaselect://../x'),
    ('pretrained', './nowhere', './nowhere'),
    ('pretrained', 5, 'pretrained'),
    ('blocks', [17], '17'),
    ('blocks', 'two', 'blocks'),
    ('feature', 'querry', 'querry'),
    ('timestep', 50.5, 'timestep'),
    ('timestep', 1000, '1000'),
    ('timestep', 'automatic', 'automatic'),
    ('condition', 99, 'condition'),
    ('input_std', [1, 1, 0], 'input_std'),
    ('input_std', float('nan'), 'input_std'),
    ('input_mean', [1, 2], 'input_mean'),
    ('channel_order', 'RGB', 'channel_order'),
    ('dtype', 'fp8', 'fp8'),
    ('noise', 'none', 'noise'),
    ('noise', dict(seed=-1), 'seed of noise'),
    ('noise', dict(draws=0), 'draws of noise'),
    ('pretrained', dict(model='mmaselect://dit_cifar10', load_kwargs=dict(foo=1)), 'foo'),
    ('hub_kwargs', 'abc', 'hub_kwargs'),
    ('calibration', './nowhere', 'nowhere'),
    ('out_indices', 5, 'out_indices'),
):
    add(
        'arguments',
        f'{_name}={_value!r}',
        _backbone(**{_name: _value, **({'timestep': 'auto'} if _name == 'calibration' else {})}),
        _word,
    )
for _name, _value in (
    ('blocks', 2),
    ('blocks', np.int64(2)),
    ('blocks', -1),
    ('timestep', np.int32(40)),
    ('input_mean', 127.5),
    ('input_std', np.float32(58)),
    ('noise', dict(draws=70)),
):
    add('arguments', f'{_name}={_value!r}', _backbone(**{_name: _value}))
for _name, _value in (
    ('criterion', 'HighFrequencyRatio'),
    ('criterion', 'CrossSpectrumHFR'),
    ('timesteps', '0:1000:250'),
    ('timesteps', np.array(GRID)),
    ('num_images', np.int16(3)),
    ('others', 'HighFrequencyRatio'),
    ('image_size', [32, 32]),
    ('cache_dir', Path('some/where')),
):
    add('arguments', f'selection.{_name}={_value!r}', _selection(**{_name: _value}))


# -- names that are nearly right -------------------------------------------------------------------
for _name, _meant in (
    ('block', 'is blocks meant'),
    ('calibraton', 'is calibration meant'),
    ('featurs', 'is feature meant'),
    ('out_indices', 'is blocks meant'),
    ('n_images', 'selection=dict(num_images=...)'),
    ('revison', 'pretrained=dict(revision=...)'),
    ('depth', '_delete_=True'),
    ('frozen_stages', '_delete_=True'),
    ('norm_eval', '_delete_=True'),
):
    add('names', f'{_name} of the backbone', _backbone(**{_name: 3}), _meant)


# -- what the data_preprocessor does to pixels -----------------------------------------------------
def _preprocessed(
    backbone: dict[str, Any], pixels: float = 1.0, **preprocessor: Any
) -> Callable[[Workshop], None]:
    """Features of a model with a data_preprocessor are those of the pixels of the files."""

    def attempt(shop: Workshop) -> None:
        from mmengine.model import BaseModel

        class Model(BaseModel):
            def forward(self, inputs: Any, data_samples: Any = None, mode: str = '') -> Any:
                return self.backbone(inputs)

        files = [torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0)) * 255]
        model = Model(dict(type='ImgDataPreprocessor', **preprocessor))
        model.backbone = ASelecTDiT(shop.pixels, blocks=[2], timestep=50, **backbone)
        model.eval()
        found = model.test_step(dict(inputs=[one * pixels for one in files]))[0]
        plain = ASelecTDiT(shop.pixels, blocks=[2], timestep=50).eval()
        expected = plain(files[0][None].flip(1) / 127.5 - 1)[0]
        expect(torch.allclose(found, expected, atol=1e-3), 'other features')

    return attempt


_IMAGENET = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])
for _what, _given, _does, _word in (
    ('ImageNet, as toolboxes have it', {}, dict(_IMAGENET, bgr_to_rgb=True), ''),
    ('0 and 255', {}, dict(mean=[0] * 3, std=[255] * 3, bgr_to_rgb=True), ''),
    ('no normalization', {}, dict(bgr_to_rgb=True), ''),
    ('BGR that is said', dict(channel_order='bgr'), dict(_IMAGENET), ''),
    ('BGR that is not said', {}, dict(_IMAGENET), 'channel_order'),
    ('another mean', dict(input_mean=127.5), dict(_IMAGENET, bgr_to_rgb=True), '123.675'),
    ('another std', dict(input_std=127.5), dict(_IMAGENET, bgr_to_rgb=True), '58.395'),
    ('another order', dict(channel_order='bgr'), dict(_IMAGENET, bgr_to_rgb=True), "'rgb'"),
):
    _words = [_word] if _word else []
    add('preprocessors', _what, _preprocessed(_given, **_does), *_words)
add(
    'preprocessors',
    'pixels 300 times as large',
    _preprocessed({}, 300.0, **_IMAGENET, bgr_to_rgb=True),
    'pixels span',
)


# -- model folders ---------------------------------------------------------------------------------
def _model(change: Callable[[Path], Any], **options: Any) -> Callable[[Workshop], None]:
    def attempt(shop: Workshop) -> None:
        model = shop.model()
        change(model)
        images = torch.rand(1, 3, 32, 32)
        from sources import described

        source, others = described(model, options)
        dit = FrozenDiT.from_pretrained(source, blocks=[2], **others)
        expected = FrozenDiT.from_pretrained(shop.latents, blocks=[2]).encode(images)
        expect(torch.equal(dit.encode(images), expected), 'other latents')

    return attempt


def _rewrite(part: str, change: Callable[[bytes], bytes]) -> Callable[[Path], Any]:
    def edit(model: Path) -> None:
        file = model / part / WEIGHTS
        file.write_bytes(change(file.read_bytes()))

    return edit


def _reweigh(part: str, change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], Any]:
    def edit(model: Path) -> None:
        file = model / part / WEIGHTS
        weights = safetensors.torch.load_file(file)
        change(weights)
        safetensors.torch.save_file(weights, file, metadata={'format': 'pt'})

    return edit


def _json(file: str, *drop: str, **changes: Any) -> Callable[[Path], Any]:
    def edit(model: Path) -> None:
        entries = {**json.loads((model / file).read_text()), **changes}
        (model / file).write_text(json.dumps({k: v for k, v in entries.items() if k not in drop}))

    return edit


def _pickled(part: str) -> Callable[[Path], Any]:
    def edit(model: Path) -> None:
        file = model / part / WEIGHTS
        torch.save(safetensors.torch.load_file(file), file.parent / 'diffusion_pytorch_model.bin')
        file.unlink()

    return edit


for _part, _tensor in (('transformer', _Q), ('vae', 'encoder.conv_in.weight')):
    for _name, _edit_bytes in (
        ('cut in half', lambda d: d[: len(d) // 2]),
        ('five bytes', lambda d: d[:5]),
        ('garbage', lambda d: b'garbage' * 999),
        ('a pointer of Git LFS', lambda d: b'version https://'),
    ):
        add(
            'model folders',
            f'{_part}: {_name}',
            _model(_rewrite(_part, _edit_bytes)),
            _part,
            'truncated or damaged',
        )
    add('model folders', f'{_part}: empty', _model(_rewrite(_part, lambda d: b'')), _part, 'empty')
    add(
        'model folders',
        f'{_part}: no weights',
        _model(lambda m, p=_part: (m / p / WEIGHTS).unlink()),
        _part,
        'no weights',
    )
    add(
        'model folders',
        f'{_part}: a weight missing',
        _model(_reweigh(_part, lambda w, n=_tensor: w.pop(n))),
        _tensor,
    )
    add(
        'model folders',
        f'{_part}: a weight of another shape',
        _model(_reweigh(_part, lambda w, n=_tensor: w.update({n: torch.zeros(3, 5)}))),
        _tensor,
    )
    add('model folders', f'{_part}: pickled weights', _model(_pickled(_part)))
add(
    'model folders',
    'no transformer',
    _model(lambda m: shutil.rmtree(m / 'transformer')),
    'transformer/config.json',
)
add('model folders', 'no scheduler', _model(lambda m: shutil.rmtree(m / 'scheduler')), 'scheduler')
add('model folders', 'no vae', _model(lambda m: shutil.rmtree(m / 'vae')), 'vae/')
add(
    'model folders',
    'an empty folder',
    _model(lambda m: [shutil.rmtree(p) for p in m.iterdir()]),
    'transformer',
)
for _file in ('transformer/config.json', 'vae/config.json', 'scheduler/scheduler_config.json'):
    for _content in ('', '{"a": ', '[1, 2]', '7'):
        add(
            'model folders',
            f'{_file}: {_content!r}',
            _model(lambda m, f=_file, c=_content: (m / f).write_text(c)),
            _file,
        )
for _file, _changes_ in (
    ('transformer/config.json', dict(patch_size=0)),
    ('transformer/config.json', dict(num_layers='six')),
    ('transformer/config.json', dict(num_layers=-3)),
    ('transformer/config.json', dict(in_channels=[4])),
    ('transformer/config.json', dict(sample_size=0)),
    ('transformer/config.json', dict(attention_head_dim=4)),
    ('transformer/config.json', dict(_class_name='WanTransformer3DModel')),
    ('transformer/config.json', dict(_class_name='NoSuchModel')),
    ('vae/config.json', dict(scaling_factor='big')),
    ('vae/config.json', dict(block_out_channels=8)),
    ('vae/config.json', dict(_class_name='NoSuchVAE')),
    ('scheduler/scheduler_config.json', dict(num_train_timesteps=0)),
    ('scheduler/scheduler_config.json', dict(beta_schedule='steep')),
    ('scheduler/scheduler_config.json', dict(_class_name='NoSuchScheduler')),
):
    add(
        'model folders',
        f'{_file}: {_changes_}',
        _model(_json(_file, **_changes_)),
        _file.split('/')[0],
    )
for _file, _entry in (
    ('transformer/config.json', 'num_layers'),
    ('transformer/config.json', 'patch_size'),
    ('transformer/config.json', '_class_name'),
    ('vae/config.json', '_class_name'),
    ('scheduler/scheduler_config.json', '_class_name'),
):
    add('model folders', f'{_file} without {_entry}', _model(_json(_file, _entry)), _file, _entry)
add('model folders', 'a variant that no part has', _model(lambda m: None, variant='fp61'), 'fp61')
add(
    'model folders',
    'a variant that one part has',
    _model(
        lambda m: (m / 'vae' / WEIGHTS).rename(m / 'vae' / WEIGHTS.replace('.s', '.fp16.s')),
        variant='fp16',
    ),
)


# -- checkpoints of a toolbox ----------------------------------------------------------------------
class _RunsCode:
    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.folder,)


class Segmentor(torch.nn.Module):
    """A head on a backbone."""

    def __init__(self, **given: Any) -> None:
        super().__init__()
        self.backbone = ASelecTDiT(**given)
        self.head = torch.nn.Conv2d(16, 2, 1)


def _checkpoint(
    change: Callable[[dict[str, Any]], Any], **given: Any
) -> Callable[[Workshop], None]:
    def attempt(shop: Workshop) -> None:
        config = dict(pretrained=str(shop.pixels), blocks=[2])
        state = dict(Segmentor(**config, timestep=100).state_dict())
        change(state)
        torch.save(dict(state_dict=state), shop.here / 'a.pth')
        model = Segmentor(**{**config, **given})
        load_checkpoint(model, str(shop.here / 'a.pth'), strict=True)
        expect(model.backbone.timestep == 100, f'timestep {model.backbone.timestep}')

    return attempt


def _set(name: str, value: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda state: state.update({f'backbone.{name}': value})


for _name, _value in (
    ('picked_timestep', torch.tensor(50.7)),
    ('picked_timestep', torch.tensor(True)),
    ('picked_timestep', torch.tensor(float('nan'))),
    ('picked_timestep', torch.tensor(1000)),
    ('picked_timestep', torch.empty(0, dtype=torch.long)),
    ('picked_timestep', torch.tensor(-1)),
    ('picked_timestep', torch.tensor([5])),
    ('read_from', torch.tensor([99, 2])),
    ('read_from', torch.tensor([0.5, 2.0])),
    ('read_from', torch.tensor(0)),
    ('frozen_signature', torch.full((64,), float('nan'))),
    ('frozen_signature', torch.empty(0)),
    ('frozen_signature', torch.zeros(64, dtype=torch.long)),
):
    # -1 is what a backbone without a pick stores: it says so when the timestep is asked for.
    _word = 'no timestep yet' if _value.numel() == 1 and _value == -1 else _name
    add('checkpoints', f'{_name} {str(_value)[:40]}', _checkpoint(_set(_name, _value)), _word)
add('checkpoints', 'as it is', _checkpoint(lambda state: None))
add('checkpoints', 'a config with another timestep', _checkpoint(lambda s: None, timestep=300))
add('checkpoints', 'of other blocks', _checkpoint(lambda s: None, blocks=[1]), 'blocks')
add('checkpoints', 'of another feature', _checkpoint(lambda s: None, feature='key'), 'key')
add(
    'checkpoints',
    'of other weights',
    _checkpoint(lambda s: s['backbone.frozen_signature'].add_(1)),
    'another frozen model',
)


def _runner(prepare: Callable[[Workshop, Path], Any], *flags: str) -> Callable[[Workshop], None]:
    """``tools/train.py`` on a work directory that something has happened to."""

    def attempt(shop: Workshop) -> None:
        work = shop.here / 'work'
        _train(_demo(shop), '--work-dir', work, '--no-validate')
        expected = _weights(work / 'iter_6.pth')
        (work / 'iter_6.pth').unlink()
        (work / 'last_checkpoint').write_text(str(work / 'iter_3.pth'))
        prepare(shop, work)
        _train(_demo(shop), '--work-dir', work, '--no-validate', *(flags or ('--resume',)))
        found = _weights(work / 'iter_6.pth')
        expect(found.keys() == expected.keys(), 'other weights')
        for name, value in expected.items():
            expect(torch.equal(found[name], value), f'{name} differs from a run that was not ended')

    return attempt


def _weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)['state_dict']


def _train(*arguments: Any) -> None:
    """``tools/train.py`` in a process of its own, silent; raises the error that it ended with."""
    receiver, sender = multiprocessing.Pipe(duplex=False)

    def action() -> None:
        try:
            _train_here(*arguments)
        except BaseException as error:
            code = error.code if isinstance(error, SystemExit) else error
            sender.send((type(error).__name__, str(code)))
            raise

    code = _forked(action)
    if code != 0:
        name, text = receiver.recv() if receiver.poll() else ('RuntimeError', f'exit code {code}')
        kind = next((kind for kind in KINDS if kind.__name__ == name), None)
        if kind is None:
            raise Exception(f'{name}: {text}')
        raise kind(text)


def _train_here(*arguments: Any) -> None:
    """``tools/train.py`` in this process."""
    sys.path.insert(0, str(ROOT))
    tool = runpy.run_path(str(ROOT / 'tools' / 'train.py'))
    tool['main']([str(argument) for argument in arguments])


_demos = iter(range(10**6))


def _demo(shop: Workshop, hooks: tuple[Any, ...] = (), **selection: Any) -> Path:
    """The demo config on a tiny model: 6 iterations, a checkpoint every third, and a selection."""
    path = shop.here / f'demo{next(_demos)}.py'
    options = dict(
        criterion='HighFrequencyRatio', others=(), timesteps=GRID, num_images=4, image_size=32
    )
    path.write_text(
        f'_base_ = {str(ROOT / "configs/demo/aselect_dit-tiny_fcn_demo.py")!r}\n'
        f'model = dict(backbone=dict(pretrained={str(shop.pixels)!r}, blocks=[2],\n'
        f'    calibration={str(shop.photos)!r},\n'
        f'    selection=dict(_delete_=True, **{ {**options, **selection}!r})),\n'
        '    decode_head=dict(in_channels=16))\n'
        'train_dataloader = dict(batch_size=2, dataset=dict(num_collages=8))\n'
        'train_cfg = dict(max_iters=6)\n'
        'default_hooks = dict(checkpoint=dict(interval=3))\n'
        f'custom_hooks = {[dict(type="mmaselect.SelectionHook"), *hooks]!r}\n'
    )
    return path


@HOOKS.register_module()
class SignalInIteration(Hook):
    """Sends this process a signal while an iteration runs."""

    def __init__(self, at: int, number: int) -> None:
        self.at, self.number = at, number

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        if runner.iter == self.at:
            os.kill(os.getpid(), self.number)


def _forked(action: Callable[[], Any]) -> int:
    """The exit code of an action in a process of its own."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            torch.set_num_threads(1)
            # A shell that starts this in the background has it ignore Ctrl-C.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            for stream in (1, 2):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
            action()
            code = 0
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
        except BaseException:
            code = 1
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _trap(shop: Workshop, work: Path) -> None:
    state = torch.load(work / 'iter_3.pth', weights_only=True)
    torch.save({**state, 'extra': _RunsCode(str(shop.here / 'trap'))}, work / 'iter_3.pth')


for _name, _prepare in {
    'as it was left': lambda s, w: None,
    'an empty cache': lambda s, w: shutil.rmtree(s.here / 'cache', ignore_errors=True),
    'half a newer checkpoint': lambda s, w: (
        shutil.copy(w / 'iter_3.pth', w / 'iter_5.pth'),
        _cut(w / 'iter_5.pth'),
        (w / 'last_checkpoint').write_text(str(w / 'iter_5.pth')),
    ),
    'last_checkpoint empty': lambda s, w: (w / 'last_checkpoint').write_text(''),
    'last_checkpoint not a text': lambda s, w: (w / 'last_checkpoint').write_bytes(b'\xff\xfe\0'),
    'last_checkpoint too long': lambda s, w: (w / 'last_checkpoint').write_text('x' * 9000),
    'last_checkpoint gone': lambda s, w: (w / 'last_checkpoint').unlink(),
    'last_checkpoint names a file that is gone': lambda s, w: (w / 'last_checkpoint').write_text(
        'x.pth'
    ),
    'selection.json gone': lambda s, w: [p.unlink() for p in w.rglob('selection.*')],
}.items():
    add('resume', _name, _runner(_prepare))
add(
    'resume',
    'the only checkpoint cut in half',
    _runner(lambda s, w: _cut(w / 'iter_3.pth')),
    'iter_3.pth',
)
add(
    'resume',
    'the only checkpoint empty',
    _runner(lambda s, w: (w / 'iter_3.pth').write_bytes(b'')),
    'iter_3.pth',
)
add('resume', 'a checkpoint that runs code', _runner(_trap), 'mkdir', '--trust-checkpoint')
add(
    'resume',
    'no checkpoint',
    _runner(lambda s, w: ((w / 'iter_3.pth').unlink(), (w / 'last_checkpoint').unlink())),
    'nothing to resume',
)
add(
    'resume',
    'a checkpoint that does not exist',
    _runner(lambda s, w: None, '--resume', 'nowhere.pth'),
    'nowhere.pth',
)
add(
    'resume',
    'a text file',
    _runner(lambda s, w: (s.here / 'a.pth').write_text('<html>404</html>'), '--resume', 'a.pth'),
    'a.pth',
)


def _resume_elsewhere(shop: Workshop) -> None:
    """The calibration folder is gone, and the grid is another: the checkpoint decides."""
    work = shop.here / 'work'
    _train(_demo(shop), '--work-dir', work, '--no-validate')
    pick = int(_weights(work / 'iter_6.pth')['backbone.picked_timestep'])
    (work / 'iter_6.pth').unlink()
    (work / 'last_checkpoint').write_text(str(work / 'iter_3.pth'))
    shutil.rmtree(shop.here / 'cache')
    config = _demo(shop, timesteps=[333])
    config.write_text(config.read_text().replace(str(shop.photos), 'gone'))
    _train(config, '--work-dir', work, '--no-validate', '--resume')
    found = int(_weights(work / 'iter_6.pth')['backbone.picked_timestep'])
    expect(found == pick, f'{found}, not {pick}')
    for path in work.rglob('selection.json'):
        expect(json.loads(path.read_text())['timestep'] == pick, f'{path.name} says otherwise')


def _load_from(shop: Workshop) -> None:
    work = shop.here / 'work'
    _train(_demo(shop, timesteps=[250]), '--work-dir', work, '--no-validate')
    config = _demo(shop, timesteps=[750])
    _train(
        config,
        '--work-dir',
        shop.here / 'b',
        '--no-validate',
        '--cfg-options',
        f'load_from={work / "iter_6.pth"}',
    )
    found = int(_weights(shop.here / 'b' / 'iter_6.pth')['backbone.picked_timestep'])
    expect(found == 250, f'trained at {found}, and the checkpoint is of 250')
    for path in (shop.here / 'b').rglob('selection.json'):
        expect(json.loads(path.read_text())['timestep'] == 250, f'{path.name} says otherwise')


add('resume', 'calibration gone, another grid', _resume_elsewhere)
add('resume', 'load_from of another pick', _load_from)


def _ended(number: int, at: int = 4) -> Callable[[Workshop], None]:
    def attempt(shop: Workshop) -> None:
        whole, work = shop.here / 'whole', shop.here / 'work'
        _train(_demo(shop), '--work-dir', whole, '--no-validate')
        killed = _demo(shop, (dict(type='SignalInIteration', at=at, number=number),))
        code = _forked(lambda: _train_here(killed, '--work-dir', work, '--no-validate'))
        expect(code == (-number if number == signal.SIGKILL else 128 + number), f'exit code {code}')
        if number != signal.SIGKILL:
            expect((work / f'iter_{at + 1}.pth').exists(), 'no checkpoint was saved')
        _train(_demo(shop), '--work-dir', work, '--no-validate', '--resume')
        expected, found = (_weights(folder / 'iter_6.pth') for folder in (whole, work))
        for name, value in expected.items():
            expect(torch.equal(found[name], value), f'{name} differs')

    return attempt


for _number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT):
    for _at in (3, 4):
        add('training', f'{_number.name} in iteration {_at + 1}', _ended(int(_number), _at))


def _killed_in_the_selection(number: int) -> Callable[[Workshop], None]:
    def attempt(shop: Workshop) -> None:
        work = shop.here / 'work'

        def run() -> None:
            features, calls = FrozenDiT.features, []

            def slow(*args: Any, **kwargs: Any) -> Any:
                calls.append(1)
                if len(calls) == 3:
                    os.kill(os.getpid(), number)
                return features(*args, **kwargs)

            FrozenDiT.features = slow
            _train_here(_demo(shop), '--work-dir', work, '--no-validate')

        code = _forked(run)
        expect(code != 0, 'it was not ended')
        expect(not list(shop.here.rglob('selection.json')), 'half a selection was written')
        _train(_demo(shop), '--work-dir', work, '--no-validate')
        expect((work / 'iter_6.pth').exists(), 'the next run did not end')

    return attempt


for _number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT):
    add('training', f'{_number.name} in the selection', _killed_in_the_selection(int(_number)))


def _full_disk_after_the_first_checkpoint(shop: Workshop) -> None:
    """With one checkpoint kept: the old one must not go before the new one is there."""
    work = shop.here / 'work'
    one = ('--no-validate', '--cfg-options', 'default_hooks.checkpoint.max_keep_ckpts=1')

    def run() -> None:
        written = WholeFileBackend.put

        def full(self: WholeFileBackend, obj: bytes, filepath: str | Path) -> None:
            if Path(filepath).name == 'iter_6.pth':
                _full_disk(lambda: written(self, obj, filepath), 100)
            written(self, obj, filepath)

        WholeFileBackend.put = full
        _train_here(_demo(shop), '--work-dir', work, *one)

    expect(_forked(run) != 0, 'it ended as if all were well')
    expect([path.name for path in work.glob('*.pth')] == ['iter_3.pth'], 'the old one is gone')
    _train(_demo(shop), '--work-dir', work, *one, '--resume')
    expect([path.name for path in work.glob('*.pth')] == ['iter_6.pth'], 'not one was kept')


def _full_disk_in_training(shop: Workshop) -> None:
    work = shop.here / 'work'
    _train(_demo(shop), '--work-dir', work, '--no-validate')
    expected = _weights(work / 'iter_6.pth')
    size = (work / 'iter_6.pth').stat().st_size
    shutil.rmtree(work)
    code = _forked(
        lambda: _full_disk(
            lambda: _train(_demo(shop), '--work-dir', work, '--no-validate'), size - 100
        )
    )
    expect(code != 0, 'it ended as if all were well')
    expect(not list(work.glob('*.pth')), 'half a checkpoint is there')
    _train(_demo(shop), '--work-dir', work, '--no-validate')
    for name, value in expected.items():
        expect(torch.equal(_weights(work / 'iter_6.pth')[name], value), f'{name} differs')


def _nan_weights(shop: Workshop) -> None:
    model = shop.model(latent=False)
    _reweigh('transformer', lambda w: w[_Q].fill_(float('nan')))(model)
    config = _demo(shop)
    config.write_text(
        config.read_text()
        .replace(str(shop.pixels), str(model))
        .replace('blocks=[2],', 'blocks=[2], timestep=100,')
    )
    _train(config, '--work-dir', shop.here / 'work', '--no-validate')


def _nan_weights_in_a_selection(shop: Workshop) -> None:
    model = shop.model(latent=False)
    _reweigh('transformer', lambda w: w[_Q].fill_(float('nan')))(model)
    shop.select(model=str(model), blocks=[2], cache=False)


add('training', 'a full disk', _full_disk_in_training)
add('training', 'a full disk, one kept', _full_disk_after_the_first_checkpoint)
add('training', 'weights of NaN', _nan_weights, 'not finite')
add('training', 'weights of NaN in a selection', _nan_weights_in_a_selection, 'finite')


def _option(*options: str) -> Callable[[Workshop], None]:
    def attempt(shop: Workshop) -> None:
        results = []
        for name, flags in (('plain', ()), ('other', ('--cfg-options', *options))):
            _train(_demo(shop), '--work-dir', shop.here / name, '--no-validate', *flags)
            results.append(_weights(shop.here / name / 'iter_6.pth'))
        for name, value in results[0].items():
            expect(
                torch.allclose(results[1][name].float(), value.float(), rtol=1e-3, atol=1e-4),
                f'{name} differs',
            )

    return attempt


add('toolbox', 'compile=dict(backend=eager)', _option('compile.backend=eager'))
add('toolbox', 'activation checkpointing', _option('activation_checkpointing=["decode_head"]'))
add('toolbox', 'EMA', lambda s: _with_ema(s))
add('toolbox', 'a lazy config', lambda s: _lazy(s))
add('toolbox', 'layer decay of MAE', lambda s: _layer_decay(s), 'layer')


def _with_ema(shop: Workshop) -> None:
    work = shop.here / 'work'
    _train(_demo(shop, (dict(type='EMAHook'),)), '--work-dir', work, '--no-validate')
    state = torch.load(work / 'iter_6.pth', weights_only=True)
    averaged = state['ema_state_dict']
    for name, value in state['state_dict'].items():
        if 'backbone' in name:
            expect(torch.equal(averaged[f'module.{name}'], value), f'{name} is averaged')


def _lazy(shop: Workshop) -> None:
    path = shop.here / 'lazy.py'
    path.write_text(
        'from mmengine.config import read_base\n'
        'from mmaselect.models import ASelecTDiT\n'
        f'backbone = dict(type=ASelecTDiT, pretrained={str(shop.pixels)!r}, blocks=[2],\n'
        f'    calibration={str(shop.photos)!r}, selection=dict(criterion="HighFrequencyRatio",\n'
        f'    others=(), timesteps={GRID!r}, num_images=4, image_size=32))\n'
        'model = dict(backbone=backbone)\n'
    )
    out = shop.here / 'out'
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        tool = runpy.run_path(str(ROOT / 'tools' / 'select_timestep.py'))
        tool['main']([str(path), '--out', str(out)])
    expect(json.loads((out / 'selection.json').read_text())['timestep'] in GRID, 'no pick')


def _layer_decay(shop: Workshop) -> None:
    _train(
        *(_demo(shop), '--work-dir', shop.here / 'work', '--no-validate', '--cfg-options'),
        'optim_wrapper.constructor=mmseg.LearningRateDecayOptimizerConstructor',
        *(
            'optim_wrapper.paramwise_cfg.num_layers=12',
            'optim_wrapper.paramwise_cfg.decay_rate=0.65',
        ),
        'optim_wrapper.paramwise_cfg.decay_type=layer_wise',
    )


# -- entries of a config that do not fit each other ------------------------------------------------
def _entry(*options: str) -> Callable[[Workshop], None]:
    """``tools/train.py`` with some entries of the demo config set to others."""

    def attempt(shop: Workshop) -> None:
        _train(_demo(shop), '--work-dir', shop.here / 'work', '--cfg-options', *options)

    return attempt


_HEAD = 'model.decode_head'
for _name, _options, _words in (
    ('in_index', [f'{_HEAD}.in_index=3'], ['decode_head.in_index is 3', 'one map']),
    ('in_channels', [f'{_HEAD}.in_channels=32'], ['decode_head.in_channels is 32', '16']),
    ('num_classes', [f'{_HEAD}.num_classes=2'], ['decode_head.num_classes is 2', '9 classes']),
    (
        'in_channels of several maps',
        ['model.backbone.blocks=[1,2]', f'{_HEAD}.in_index=[0,1]', f'{_HEAD}.in_channels=[16,8]',
         f'{_HEAD}.input_transform=resize_concat'],
        ['decode_head.in_channels is 24', '2 maps', '32'],
    ),
    ('no calibration', ['model.backbone.calibration=None'], ['model.backbone.calibration']),
    ('calibration that is gone', ['model.backbone.calibration=gone'], ['gone', 'does not exist']),
    ('calibration of another kind', ['model.backbone.calibration=5'], ['calibration must be']),
):  # fmt: skip
    add('entries', _name, _entry(*_options), *_words)


def _one_image_to_a_batch_norm(shop: Workshop) -> None:
    config = _demo(shop)
    head = dict(
        _delete_=True, type='PSPHead', in_channels=16, channels=8, num_classes=9,
        pool_scales=(1,), norm_cfg=dict(type='BN'), align_corners=False,
    )  # fmt: skip
    config.write_text(
        f'{config.read_text()}model["decode_head"] = {head!r}\ntrain_dataloader["batch_size"] = 1\n'
    )
    _train(config, '--work-dir', shop.here / 'work')


add(
    'entries',
    'one image to a batch norm',
    _one_image_to_a_batch_norm,
    'train_dataloader.batch_size is 1',
    'drop_last',
)


# -- several ranks ---------------------------------------------------------------------------------
def _ranks(trouble: str, words: tuple[str, ...] = (), world: int = 2) -> Callable[[Workshop], None]:
    """A selection by several processes, of which one has trouble; the others say which."""

    def attempt(shop: Workshop) -> None:
        def run(rank: int) -> None:
            torch.set_num_threads(1)
            torch.distributed.init_process_group(
                'gloo', init_method=f'file://{shop.here}/store', rank=rank, world_size=world
            )
            os.environ['MMASELECT_RANK_TIMEOUT'] = '8' if trouble in ('dies', 'hangs') else '600'
            images, dit = shop.photos, shop.dit
            if trouble == 'images' and rank == 1:
                images = shop.here / 'other'
                shutil.copytree(shop.photos, images)
                (images / '4.png').unlink()
            if trouble == 'weights' and rank == 1:
                dit.transformer.transformer_blocks[2].attn1.to_q.bias.data += 1e-3
            if trouble == 'cache':
                os.environ['MMASELECT_CACHE'] = '/proc/mmaselect'
            if trouble == 'error' and rank == 1:
                dit.features = None
            if trouble == 'dies' and rank == 1:
                dit.features = lambda *args: os._exit(9)
            if trouble == 'hangs' and rank == 1:
                dit.features = lambda *args: time.sleep(1000)
            number = 2 if trouble == 'few images' else 6
            try:
                said = str(shop.select(images, num_images=number).timestep)
            except Exception as error:
                said = str(error)
            (shop.here / f'rank{rank}').write_text(said)

        children = []
        for rank in range(world):
            pid = os.fork()
            if pid == 0:
                try:
                    run(rank)
                finally:
                    os._exit(0)
            children.append(pid)
        for rank, pid in enumerate(children):
            if not (trouble == 'hangs' and rank == 1):
                os.waitpid(pid, 0)
        if trouble == 'hangs':
            os.kill(children[1], signal.SIGKILL)
            os.waitpid(children[1], 0)
        said = [
            path.read_text() if (path := shop.here / f'rank{rank}').exists() else None
            for rank in range(world)
        ]
        if words:
            expect(said[0] is not None and all(word in said[0] for word in words), f'{said}')
        else:
            alone = shop.select(num_images=2 if trouble == 'few images' else 6, cache=False)
            expect(said == [str(alone.timestep)] * world, f'{said}, and {alone.timestep} alone')

    return attempt


for _trouble, _words in {
    'none': (),
    'cache': (),
    'images': ('rank 1', '5', '6'),
    'weights': ('weights of rank 1',),
    'error': ('failed on another rank',),
    'dies': ('rank 1 has died or hangs',),
    'hangs': ('rank 1 has died or hangs',),
}.items():
    add('ranks', _trouble, _ranks(_trouble, _words))
add('ranks', 'more than images', _ranks('few images', world=4))


stored_faults(add, expect, _full_disk)
given_faults(add, expect)


def run(faults: list[Fault], shop: Workshop, tell: Callable[[str], Any] = print) -> Counter:
    """Try faults, tell of those that are not survived, and count (group, outcome)."""
    counts: Counter = Counter()
    for fault in faults:
        start = time.time()
        outcome, why = judge(fault, shop)
        counts[fault.group, outcome] += 1
        if outcome in ('wrong', 'unclear'):
            tell(f'{outcome}: {fault.group}: {fault.name}\n    {why}')
        if (seconds := time.time() - start) > 60:
            tell(f'{seconds:.0f} s: {fault.group}: {fault.name}')
    return counts


def main() -> int:
    """Run as a script; the exit code says whether all was survived."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    groups = list(dict.fromkeys(fault.group for fault in FAULTS))
    parser.add_argument('--group', choices=groups, action='append', help='only these; default: all')
    parser.add_argument('--name', default='', help='only those whose names have this text')
    args = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parent))
    faults = [
        fault
        for fault in FAULTS
        if args.name in fault.name and (not args.group or fault.group in args.group)
    ]
    with tempfile.TemporaryDirectory() as name:
        counts = run(faults, Workshop(Path(name)))
    table = defaultdict(Counter)
    for (group, outcome), count in counts.items():
        table[group][outcome] += count
    print(f'\n| {"group":26} | faults | right | clear error | wrong | unclear |')
    print(f'|{"-" * 28}|---|---|---|---|---|')
    table['all'] = sum(table.values(), Counter())
    for group, row in table.items():
        numbers = [row.total(), *(row[kind] for kind in ('right', 'clear', 'wrong', 'unclear'))]
        print(f'| {group:26} | ' + ' | '.join(map(str, numbers)) + ' |')
    return min(1, table['all']['wrong'] + table['all']['unclear'])


if __name__ == '__main__':
    sys.exit(main())
