# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Faults of what is stored, for :mod:`fault_matrix`: features, the frozen cache, runs, pickles."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import runpy
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mmaselect import select_timestep
from mmaselect.apis import FeatureExtractor, load_features, save_features
from mmaselect.look import look_at
from mmaselect.models import ASelecTDiT
from mmaselect.selection import SelectionResult
from mmaselect.untrusted import only_weights

ROOT = Path(__file__).resolve().parents[1]
_FEATURES = dict(timestep=250, blocks=[1, 2], features='query', image_size=32, progress=False)
_FEATURES |= dict(shard_size=2, batch_size=2)


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.folder),)


@DATASETS.register_module(force=True)
class AnnotatedPhotos(BaseDataset):
    """Any data set of MMEngine, which reads whatever ``ann_file`` is."""


# -- damage of any file ----------------------------------------------------------------------------
def _flip(at: float, mask: int = 0x40) -> Callable[[Path], Any]:
    """Change a bit, at a share of the file's length."""

    def damage(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[int(at * (len(data) - 1))] ^= mask
        path.write_bytes(data)

    return damage


def _replaced(make: Callable[[Path], Any]) -> Callable[[Path], Any]:
    def damage(path: Path) -> None:
        path.unlink()
        make(path)

    return damage


#: Of files whose every byte counts.
ANY = {
    'a bit in its head': _flip(0.001, 0x01),
    'a bit in its middle': _flip(0.5),
    'a bit at its end': _flip(1.0, 0x01),
    'cut off': lambda path: path.write_bytes(path.read_bytes()[:-9]),
    'cut in half': lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    'empty': lambda path: path.write_bytes(b''),
    'zeros': lambda path: path.write_bytes(bytes(path.stat().st_size)),
    'a web page': lambda path: path.write_text('<html>404</html>'),
    'a pipe in its place': _replaced(os.mkfifo),
    'a folder in its place': _replaced(Path.mkdir),
}


def _tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], Any]:
    """Change the tensors of a safetensors file, and keep what it says of itself."""

    def damage(path: Path) -> None:
        with safe_open(path, framework='pt') as file:
            about = file.metadata()
        found = {name: value.clone() for name, value in load_file(path).items()}
        found = change(found) or found
        save_file({name: value.contiguous() for name, value in found.items()}, path, about)

    return damage


def _each(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path], Any]:
    """Change the values, and neither keys nor checksums."""
    return _tensors(
        lambda found: {
            name: value if name in ('keys', 'checks') else change(value)
            for name, value in found.items()
        }
    )


#: Of files of tensors that are well-formed afterwards.
VALUES = {
    'NaN': _each(lambda value: value * float('nan')),
    'doubled': _each(lambda value: value * 2),
    'half precision': _each(lambda value: value.half()),
    '5 channels': _each(lambda value: value[:, :5]),
    'a row less': _each(lambda value: value[:-1]),
    'rows turned around': _each(lambda value: value.flip(0)),
    'rows and columns swapped': _each(lambda value: value.transpose(-1, -2)),
    'one value': _each(lambda value: value.index_fill(1, torch.tensor(3), 0.5)),
}


def stored_faults(
    add: Callable[..., None],
    expect: Callable[[bool, str], None],
    full_disk: Callable[[Callable[[], Any], int], Any],
) -> None:
    """List the faults.

    Args:
        add: Lists one.
        expect: Raises unless a condition holds.
        full_disk: Calls where files can have so many bytes.
    """
    _feature_folders(add, expect, full_disk)
    _frozen_cache(add, expect, full_disk)
    _pretraining(add, expect)
    _leaderboard(add, expect)
    _selections(add, expect)
    _checkpoints(add, expect)
    _pickles(add, expect)


# -- feature folders -------------------------------------------------------------------------------
def _stored_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def _read_whole(folder: Path) -> None:
    for _ in load_features(folder).shards():
        pass


def _feature_folders(add: Any, expect: Any, full_disk: Any) -> None:
    group = 'feature folders'

    def made(shop: Any) -> tuple[Path, Path]:
        images, out = shop.folder(), shop.here / 'out'
        save_features(images, out, shop.pixels, **_FEATURES)
        return images, out

    def read(name: str, damage: Callable[[Path], Any]) -> Callable[[Any], None]:
        def attempt(shop: Any) -> None:
            _, out = made(shop)
            damage(out / name)
            _read_whole(out)

        return attempt

    def again(name: str, damage: Callable[[Path], Any], **more: Any) -> Callable[[Any], None]:
        def attempt(shop: Any) -> None:
            images, out = made(shop)
            whole = _stored_in(out)
            damage(out / name)
            save_features(images, out, shop.pixels, **_FEATURES, **more)
            expect(_stored_in(out) == whole, 'other features than at first')

        return attempt

    shard = 'features-00001.safetensors'
    for what, damage in {**ANY, **VALUES}.items():
        # Neither is taken away, for what it may be there for.
        stays = what.endswith('in its place')
        add(group, f'shard, {what}: read', read(shard, damage), shard)
        if not stays:
            add(group, f'shard, {what}: written again', again(shard, damage))
    add(group, 'shard, gone: read', read(shard, Path.unlink), shard, 'again')
    add(group, 'shard, gone: written again', again(shard, Path.unlink))
    for what, damage in ANY.items():
        add(group, f'index, {what}: read', read('index.json', damage), 'index.json')
        if 'in its place' not in what:
            fresh = again('index.json', damage, overwrite=True)
            add(group, f'index, {what}: written again', fresh)

    def changed(
        change: Callable[[Any, Path, dict[str, Any]], Any], check: Callable[[Any, Path], Any]
    ) -> Callable[[Any], None]:
        """Something changes between two calls, and `check` looks at the outcome."""

        def attempt(shop: Any) -> None:
            images, out = made(shop)
            options = dict(_FEATURES, pretrained=shop.pixels)
            change(shop, images, options)
            where = options.pop('images', images)
            stored = save_features(where, out, options.pop('pretrained'), **options)
            check(shop, stored)

        return attempt

    def fresh_model(shop: Any, images: Path, options: dict[str, Any]) -> None:
        model = options['pretrained'] = shop.model(latent=False)
        (file,) = (model / 'transformer').glob('*.safetensors')
        _tensors(lambda found: {n: v * 1.001 for n, v in found.items()})(file)

    def another_folder(shop: Any, images: Path, options: dict[str, Any]) -> None:
        other = options['images'] = Path(shutil.copytree(images, shop.here / 'other'))
        for path in other.iterdir():
            Image.open(path).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(path)

    nothing = changed
    for what, change, words in (
        ('another folder of the same names', another_folder, ['other images', '--overwrite']),
        ('a model that was trained further', fresh_model, ['weights', '--overwrite']),
        ('another timestep', lambda s, i, o: o.update(timestep=500), ['timestep', '--overwrite']),
        ('another block', lambda s, i, o: o.update(blocks=[2]), ['blocks', '--overwrite']),
        ('another seed', lambda s, i, o: o.update(seed=5), ['seed', '--overwrite']),
        ('another condition', lambda s, i, o: o.update(condition=3), ['condition', '--overwrite']),
    ):
        add(group, what, nothing(change, lambda shop, stored: None), *words)

    def replaced(shop: Any, images: Path, options: dict[str, Any]) -> None:
        shutil.copy(images / '5.png', images / '2.png')

    def one_twice(shop: Any, stored: Any) -> None:
        expect(torch.equal(stored[2][1, 'query'], stored[5][1, 'query']), 'features of the old one')

    add(group, 'a picture that was replaced', changed(replaced, one_twice))
    add(
        group,
        'a picture that was added',
        changed(
            lambda s, images, o: shutil.copy(images / '5.png', images / '9.png'),
            lambda s, stored: expect(len(stored) == 7, 'it has none'),
        ),
    )
    add(
        group,
        'a picture that was removed',
        changed(
            lambda s, images, o: (images / '3.png').unlink(),
            lambda s, stored: expect(
                stored.paths == ['0.png', '1.png', '2.png', '4.png', '5.png'], 'names shifted'
            ),
        ),
    )

    def broken_and_removed(shop: Any) -> None:
        images, out = shop.folder(), shop.here / 'out'
        (images / '3.png').write_bytes((images / '3.png').read_bytes()[:60])
        with contextlib.suppress(Exception):
            save_features(images, out, shop.pixels, **_FEATURES)
        expect(len(list(out.glob('*.safetensors'))) == 1, 'what was done is lost')
        (images / '3.png').unlink()
        expect(len(save_features(images, out, shop.pixels, **_FEATURES)) == 5, 'not resumed')

    def broken(shop: Any) -> None:
        images = shop.folder()
        (images / '3.png').write_bytes((images / '3.png').read_bytes()[:60])
        save_features(images, shop.here / 'out', shop.pixels, **_FEATURES)

    add(group, 'a broken image', broken, '3.png', 'Remove or replace it')
    add(group, 'a broken image that is removed', broken_and_removed)

    def other_result(use: Callable[[Any, Any], Any]) -> Callable[[Any], None]:
        def attempt(shop: Any) -> None:
            result = shop.select(model=shop.dit)
            use(shop, result)

        return attempt

    for what, use in {
        'save_features': lambda shop, result: save_features(
            shop.photos, shop.here / 'x', 'mmaselect://dit_digits',
            **{**_FEATURES, 'timestep': result},
        ),
        'FeatureExtractor': lambda shop, result: FeatureExtractor('mmaselect://dit_digits', result),
        'look_at': lambda shop, result: look_at(
            str(shop.photos / '0.png'), 'mmaselect://dit_digits', selection=result, progress=False
        ),
    }.items():  # fmt: skip
        add(group, f'{what}: a result of another model', other_result(use), 'another model')

    def out_of_room(shop: Any) -> None:
        images, out = shop.folder(), shop.here / 'out'
        with contextlib.suppress(OSError):
            full_disk(lambda: save_features(images, out, shop.pixels, **_FEATURES), 3000)
        save_features(images, out, shop.pixels, **_FEATURES)
        _read_whole(out)

    add(group, 'a full disk', out_of_room)


# -- the frozen cache ------------------------------------------------------------------------------
def _frozen_cache(add: Any, expect: Any, full_disk: Any) -> None:
    group = 'frozen cache'
    pixels = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1

    def maps(shop: Any, **options: Any) -> torch.Tensor:
        cache = dict(kind='features', folder=str(shop.here / 'frozen')) | options
        model = ASelecTDiT(shop.pixels, blocks=[2], timestep=100, noise='fixed', cache=cache)
        found = model.eval()(pixels)[0]
        model.train()  # writes what is in memory
        return found

    def damaged(which: str, damage: Callable[[Path], Any], told: bool = True) -> Any:
        def attempt(shop: Any) -> None:
            whole = maps(shop)
            (path,) = (shop.here / 'frozen').glob(f'*/{which}')
            damage(path)
            # An image that is computed without the others of its batch is rounded otherwise.
            close = torch.allclose(maps(shop), whole, rtol=1e-5, atol=1e-6)
            expect(close, 'other features')
            if told:
                shop.says(str(path))
            # What was wrong is mended, or left alone.
            close = torch.allclose(maps(shop), whole, rtol=1e-5, atol=1e-6)
            expect(close, 'other features, the third time')

        return attempt

    shards = 'shard-*'
    more = {
        'keys turned around': _tensors(lambda t: {**t, 'keys': t['keys'].flip(0)}),
        'keys of another kind': _tensors(lambda t: {**t, 'keys': t['keys'][:, :5]}),
        'a key less': _tensors(lambda t: {**t, 'keys': t['keys'][:-1]}),
        'no checksums': _tensors(lambda t: {n: v for n, v in t.items() if n != 'checks'}),
        'checksums of 0': _tensors(lambda t: {**t, 'checks': t['checks'] * 0}),
        'a checksum less': _tensors(lambda t: {**t, 'checks': t['checks'][:-1]}),
        'another block': _tensors(lambda t: {('3' if n == '2' else n): v for n, v in t.items()}),
        'no tensors': _tensors(lambda t: {n: t[n] for n in ('keys', 'checks')}),
    }
    for what, damage in {**ANY, **VALUES, **more}.items():
        # The last byte is one of a key, which no image has any more.
        told = what != 'a bit at its end'
        add(group, f'shard, {what}', damaged(shards, damage, told))
    add(group, 'shard, gone', damaged(shards, Path.unlink, told=False))
    to_nothing = _replaced(lambda path: path.symlink_to(path.with_name('nowhere')))
    add(group, 'shard, a link to nothing', damaged(shards, to_nothing))
    for what, damage in ANY.items():
        attempt = damaged('about.json', damage, told=False)
        add(group, f'about, {what}', attempt, 'about.json', may=True)

    def edited(path: Path) -> None:
        path.write_text(json.dumps({**json.loads(path.read_text()), 'kind': 'latents'}))

    add(group, 'about, edited', damaged('about.json', edited, told=False), 'edited', 'Remove')

    def not_writable(shop: Any) -> None:
        whole = maps(shop)
        # Nobody may write there, not even root.
        expect(torch.equal(maps(shop, folder='/proc/frozen'), whole), 'other features')
        shop.says('cannot be used')

    def out_of_room(shop: Any) -> None:
        whole = maps(shop)
        shutil.rmtree(shop.here / 'frozen')
        expect(torch.equal(full_disk(lambda: maps(shop), 2000), whole), 'other features')
        shop.says('cannot be written')
        expect(torch.equal(maps(shop), whole), 'other features')

    def too_small(shop: Any) -> None:
        whole = maps(shop)
        shutil.rmtree(shop.here / 'frozen')
        expect(torch.equal(maps(shop, max_gb=1e-6), whole), 'other features')
        shop.says('max_gb')

    add(group, 'a folder that cannot be written', not_writable)
    add(group, 'a full disk', out_of_room)
    add(group, 'max_gb', too_small)


# -- pre-training ----------------------------------------------------------------------------------
def _pretraining(add: Any, expect: Any) -> None:
    group = 'pre-training'
    flags = shlex.split(
        '--patch 2 --width 16 --depth 2 --heads 2 --batch 4 --log-every 1 --sample-every 0 '
        '--lr 0.01 --warmup-steps 2 --schedule constant_with_warmup --ema-decay 0.5 --size 8 '
        '--precision no --save-every 2'
    )

    def train(shop: Any, out: str, steps: int, *more: str, images: Path | None = None) -> Path:
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(reset_partial_state=True)
        tool = runpy.run_path(str(ROOT / 'tools' / 'pretrain_dit.py'))
        argv = [*flags, '--data', str(images or shop.photos), '--out', str(shop.here / out)]
        with contextlib.redirect_stdout(None), only_weights():
            tool['main']([*argv, '--steps', str(steps), *more])
        return shop.here / out

    def weights(out: Path) -> dict[str, torch.Tensor]:
        return load_file(out / 'pipeline' / 'transformer' / 'diffusion_pytorch_model.safetensors')

    def resumed(damage: Callable[[Path], Any], *more: str) -> Callable[[Any], None]:
        """Four steps in one go, and in two with damage in between."""

        def attempt(shop: Any) -> None:
            whole, cut = weights(train(shop, 'whole', 4)), train(shop, 'cut', 2)
            damage(cut)
            found = weights(train(shop, 'cut', 4, '--resume', *more))
            for name, value in whole.items():
                expect(torch.equal(found[name], value), f'{name} differs')

        return attempt

    def in_state(name: str, damage: Callable[[Path], Any]) -> Callable[[Path], Any]:
        return lambda out: damage(out / 'states' / 'step_00000002' / name)

    add(group, 'resumed', resumed(lambda out: None))
    for name in ('model.safetensors', 'optimizer.bin', 'custom_checkpoint_0.pkl'):
        for what, damage in ANY.items():
            add(group, f'{name}, {what}', resumed(in_state(name, damage)), 'step_00000002')
        add(group, f'{name}, gone', resumed(in_state(name, Path.unlink)), 'step_00000002', 'Remove')
    for what, damage in ANY.items():
        if not what.startswith('a bit'):
            attempt = resumed(in_state('progress.json', damage))
            add(group, f'progress.json, {what}', attempt, 'progress.json', 'Remove')
    add(group, 'snapshot gone', resumed(lambda out: shutil.rmtree(out / 'snapshot')))
    add(group, 'log gone', resumed(lambda out: (out / 'log.jsonl').unlink()))
    add(
        group,
        'half a state of a killed process',
        resumed(lambda out: (out / 'states' / '.step_00000003').mkdir()),
    )
    add(group, 'settings gone', resumed(lambda out: (out / 'settings.json').unlink()), 'settings')
    add(group, 'another depth', resumed(lambda out: None, '--depth', '3'), 'depth: 2 before, 3 now')
    add(group, 'another seed', resumed(lambda out: None, '--seed', '3'), 'seed: 0 before, 3 now')

    def trap(shop: Any) -> None:
        cut, ran = train(shop, 'cut', 2), shop.here / 'ran'
        torch.save(Payload(ran), cut / 'states' / 'step_00000002' / 'custom_checkpoint_0.pkl')
        progress = cut / 'states' / 'step_00000002' / 'progress.json'
        told = json.loads(progress.read_text())
        del told['checksums']  # as of an older version
        progress.write_text(json.dumps(told))
        try:
            train(shop, 'cut', 4, '--resume')
        finally:
            expect(not ran.exists(), 'code ran')

    add(group, 'a state that runs code', trap, 'mkdir', 'step_00000002')

    def other_images(change: Callable[[Path], Any]) -> Callable[[Any], None]:
        def attempt(shop: Any) -> None:
            images = shop.folder()
            train(shop, 'cut', 2, images=images)
            change(images)
            train(shop, 'cut', 4, '--resume', images=images)

        return attempt

    for what, change, words in (
        (
            'a picture replaced',
            lambda f: shutil.copy(f / '5.png', f / '2.png'),
            '2.png (other content)',
        ),
        ('a picture removed', lambda f: (f / '2.png').unlink(), '2.png (missing)'),
        ('a picture added', lambda f: shutil.copy(f / '5.png', f / '9.png'), '9.png (new)'),
        ('a picture renamed', lambda f: (f / '5.png').rename(f / '51.png'), '51.png (new)'),
        ('a broken picture', lambda f: (f / '2.png').write_bytes(b'x'), '2.png'),
    ):
        add(group, what, other_images(change), words)


# -- the leaderboard -------------------------------------------------------------------------------
_CONFIG = """
default_scope = 'mmseg'
model = dict(backbone=dict(type='X'), decode_head=dict(type='H'))
test_dataloader = dict(dataset=dict(type='mmseg.D'))
"""


def _leaderboard(add: Any, expect: Any) -> None:
    group = 'leaderboard'

    @contextlib.contextmanager
    def board(shop: Any, damage: Callable[[Path], Any]) -> Iterator[dict[str, str]]:
        """A table of a good run and of one with damage; the test itself is taken as done."""
        import csv

        tool = runpy.run_path(str(ROOT / 'tools' / 'leaderboard.py'))
        for name in ('good', 'theirs'):
            folder = shop.here / name
            folder.mkdir()
            (folder / 'config.py').write_text(f'{_CONFIG}name = {name!r}\n')
            torch.save(dict(state_dict={}), folder / 'iter_1.pth')
            (folder / 'last_checkpoint').write_text('iter_1.pth')
            shop.select(cache=False).save(folder / 'selection.json')
        damage(shop.here / 'theirs')
        known = dict(metrics={'mIoU': 50.0}, metric='mIoU', block='1', timestep=3, trained=1)
        known |= dict(total=2, test_memory=1, seconds_per_image=0.1)

        def done(run: Any, args: Any, path: Path) -> None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(known))

        tool['main'].__globals__['test_in_process'] = done
        out, said = shop.here / 'board', ''
        with contextlib.redirect_stdout(None), only_weights():
            try:
                tool['main'](
                    [str(shop.here / 'good'), str(shop.here / 'theirs'), '--out', str(out)]
                )
            except SystemExit as stop:
                said = str(stop)
        with (out / 'leaderboard.csv').open(newline='') as file:
            rows = list(csv.DictReader(file))
        expect(any(row['mean'] == '50.0' for row in rows), 'the good run has no row')
        yield {'said': said, 'problems': ' '.join(row.get('problem') or '' for row in rows)}

    def row(damage: Callable[[Path], Any], *words: str) -> Callable[[Any], None]:
        def attempt(shop: Any) -> None:
            with board(shop, damage) as found:
                expect(bool(found['problems'].strip()), 'no row says what is wrong')
                expect('theirs' in found['said'], f'{found["said"]!r} does not name it')
                for word in words:
                    expect(word in found['said'], f'{word!r} is not in {found["said"]!r}')

        return attempt

    for what, damage in ANY.items():
        if not what.startswith('a bit'):
            file = 'selection.json'
            add(
                group,
                f'{file}, {what}',
                row(lambda folder, damage=damage: damage(folder / 'selection.json'), file)
                if 'in its place' not in what
                else lambda shop, damage=damage: board(
                    shop, lambda folder: damage(folder / 'selection.json')
                ).__enter__(),
            )

    def edited(folder: Path) -> None:
        path = folder / 'selection.json'
        path.write_text(json.dumps({**json.loads(path.read_text()), 'seconds': 1e-3}))

    add(group, 'selection.json, edited', row(edited, 'edited'))
    for what, damage, words in (
        ('config, no Python', lambda d: (d / 'config.py').write_text('x = ('), ['config.py']),
        ('config, empty', lambda d: (d / 'config.py').write_text(''), []),
        ('config, gone', lambda d: (d / 'config.py').unlink(), ['config']),
        ('two configs', lambda d: (d / 'b.py').write_text(_CONFIG), ['config.py', 'b.py']),
        ('checkpoint, gone', lambda d: (d / 'iter_1.pth').unlink(), ['iter_1.pth']),
        ('note, not a text', lambda d: (d / 'last_checkpoint').write_bytes(b'\xff\xfe\0'), []),
        (
            'log, cut off',
            lambda d: (
                (d / '1' / 'vis_data').mkdir(parents=True),
                (d / '1' / 'vis_data' / 'scalars.json').write_text('{"memory": "much"'),
            ),
            ['scalars.json'],
        ),
    ):
        add(group, what, row(damage, *words))

    def formula(shop: Any) -> None:
        def name(folder: Path) -> None:
            text = (folder / 'config.py').read_text()
            (folder / 'config.py').write_text(text.replace("'H'", "'=cmd|x'"))

        with board(shop, name) as found:
            expect(not found['said'], found['said'])
        text = (shop.here / 'board' / 'leaderboard.csv').read_text()
        expect(',=cmd' not in text, 'a cell is a formula')

    add(group, 'a name that is a formula', formula)


# -- selections, checkpoints, pickles --------------------------------------------------------------
def _selections(add: Any, expect: Any) -> None:
    group = 'stored selections'

    def consistent(data: dict[str, Any]) -> None:
        """Another pick, and all that is compared with it."""
        steps = [point['timestep'] for point in data['curve']]
        best = next(step for step in steps if step != data['timestep'])
        place = steps.index(best)
        for curve in (data, *data['per_tap']):
            curve['timestep'] = best
            curve['curve'][place]['score'] = 1e9
        data['noise_level'] = data['curve'][place]['noise_level']
        data['log_snr'] = data['curve'][place]['log_snr']

    def found_out(change: Callable[[dict[str, Any]], Any]) -> Callable[[Any], None]:
        def attempt(shop: Any) -> None:
            shop.select()
            (entry,) = (shop.here / 'cache' / 'selections').glob('*.json')
            data = json.loads(entry.read_text())
            change(data)
            entry.write_text(json.dumps(data))
            result = shop.select()
            expect(result.timestep == shop.clean, f'picked {result.timestep}, not {shop.clean}')
            shop.says('cannot be used', str(entry), 'edited')

        return attempt

    def loaded(change: Callable[[dict[str, Any]], Any]) -> Callable[[Any], None]:
        def attempt(shop: Any) -> None:
            path = shop.select(cache=False).save(shop.here / 'selection.json')
            data = json.loads(path.read_text())
            change(data)
            path.write_text(json.dumps(data))
            SelectionResult.load(path)

        return attempt

    for what, change in {
        'another pick, consistent': consistent,
        'fewer warnings': lambda data: data.update(warnings=[]),
        'decided': lambda data: data.update(decided=None, rivals=[]),
        'more images': lambda data: data.update(num_images=1000),
        'a score': lambda data: data['curve'][-1].update(score=-1e9),
    }.items():
        add(group, f'edited: {what}', found_out(change))
        add(group, f'selection.json edited: {what}', loaded(change), 'selection.json', 'edited')

    def old(shop: Any) -> None:
        shop.select()
        (entry,) = (shop.here / 'cache' / 'selections').glob('*.json')
        data = json.loads(entry.read_text())
        del data['checksum']
        entry.write_text(json.dumps(data))
        expect(shop.select().timestep == shop.clean, 'another pick')
        expect('cannot be used' not in shop.log.getvalue(), 'an entry of an older version is lost')

    add(group, 'of a version without checksums', old)


def _checkpoints(add: Any, expect: Any) -> None:
    group = 'checkpoints'

    def loaded(trained: dict[str, Any], config: dict[str, Any]) -> Callable[[Any], None]:
        def attempt(shop: Any) -> None:
            def build(options: dict[str, Any]) -> ASelecTDiT:
                return ASelecTDiT(shop.pixels, **{'blocks': [2], 'timestep': 100, **options})

            build(config).load_state_dict(build(trained).state_dict())

        return attempt

    for name, was, now in (
        ('blocks', [1, 2], [1, 3]),
        ('blocks', [1, 3], [2]),
        ('feature', 'query', 'key'),
        ('channel_order', 'rgb', 'bgr'),
        ('input_mean', 127.5, 120.0),
        ('input_std', 127.5, 255.0),
        ('condition', None, 3),
        ('condition', 2, 3),
    ):
        attempt = loaded({name: was}, {name: now})
        add(group, f'{name} {was} and {now}', attempt, name, 'was trained with', 'the config says')
    add(group, 'the null class by its number', loaded({'condition': None}, {'condition': 10}))

    def old(shop: Any) -> None:
        model = ASelecTDiT(shop.pixels, blocks=[2], timestep=100)
        names = ('arrives_as', 'conditioned_on')
        model.load_state_dict({n: v for n, v in model.state_dict().items() if n not in names})

    add(group, 'of a version without pixels and condition', old)


def _pickles(add: Any, expect: Any) -> None:
    group = 'data sets'

    def select(content: Callable[[Any, list[str]], Any]) -> Callable[[Any], None]:
        def attempt(shop: Any) -> None:
            names = sorted(path.name for path in shop.photos.iterdir())
            content(shop, names)
            data = dict(
                type='AnnotatedPhotos',
                ann_file=str(shop.here / 'a.pkl'),
                data_prefix=dict(img_path=str(shop.photos)),
                pipeline=[dict(type='LoadImageFromFile')],
            )
            try:
                select_timestep(
                    shop.dit, data, timesteps=[0, 500], num_images=6, image_size=32,
                    criterion='HighFrequencyRatio', others=(), cache=False, progress=False,
                )  # fmt: skip
            finally:
                expect(not (shop.here / 'ran').exists(), 'code ran')

        return attempt

    def listed(names: list[str]) -> dict[str, Any]:
        return dict(metainfo={}, data_list=[dict(img_path=name) for name in names])

    def write(make: Callable[[Any, list[str]], bytes]) -> Callable[[Any, list[str]], None]:
        return lambda shop, names: (shop.here / 'a.pkl').write_bytes(make(shop, names))

    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        plain = write(lambda s, names, p=protocol: pickle.dumps(listed(names), p))
        add(group, f'a pickled annotation file, protocol {protocol}', select(plain))
        trap = write(
            lambda s, names, p=protocol: pickle.dumps(
                {**listed(names), 'metainfo': Payload(s.here / 'ran')}, p
            )
        )
        words = ('a.pkl', 'mkdir', 'could run code')
        add(group, f'... that runs code, protocol {protocol}', select(trap), *words)
    for what, make in {
        'cut off': lambda s, names: pickle.dumps(listed(names))[:-20],
        'empty': lambda s, names: b'',
        'a web page': lambda s, names: b'<html>',
        'a list': lambda s, names: pickle.dumps(names),
    }.items():
        add(group, f'a pickled annotation file, {what}', select(write(make)), 'a.pkl')
