# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""The folder of one pre-training run: settings, checkpoints, log."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from safetensors import SafetensorError

from mmaselect.checks import is_number
from mmaselect.files import check_regular, write_atomically, write_json, written_aside
from mmaselect.untrusted import only_weights, what_was_refused

KEPT_STATES = 2
#: Setting that is a hash of all images. Runs of versions that did not hash them have none.
CONTENT = 'content'
#: Settings that such runs lack.
_LATER = (CONTENT, 'vae_weights')


def _checksums(folder: Path, names: Iterable[str] | None = None) -> dict[str, str]:
    """Hashes of the files of a state; of all by default."""
    if names is None:
        names = sorted(path.name for path in folder.iterdir() if path.is_file())
    found = {}
    for name in names:
        with check_regular(folder / name).open('rb') as file:
            found[name] = hashlib.file_digest(file, 'sha256').hexdigest()
    return found


def _way_out(state: Path) -> str:
    return f'Remove {str(state)!r}: --resume then goes back to an older state, or starts anew'


class RunFolder:
    """``settings.json``, ``images.txt``, ``states/step_NNNNNNNN/``, ``log.jsonl`` and ``loss.png``.

    A state is written under another name and renamed when complete, so the newest one under its own
    name can always be resumed from, whenever the run was killed.

    Args:
        path: The folder; made if need be.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        self.states = self.path / 'states'
        self.log_file = self.path / 'log.jsonl'
        self.settings_file = self.path / 'settings.json'
        self.images_file = self.path / 'images.txt'

    def prepare(
        self, settings: dict[str, Any], resume: bool, images: Mapping[str, str] | None = None
    ) -> None:
        """Make the folder, or check that its run can resume with these settings and images.

        Args:
            settings: What must not change within a run.
            resume: Whether a run that is already there is to go on.
            images: Hash of each training image by its name, in their order.

        Raises:
            FileExistsError: If a run is there and ``resume`` is False.
            ValueError: If the run that is there had other settings or images.
        """
        listing = ''.join(f'{digest}  {name}\n' for name, digest in (images or {}).items())
        if images is not None:
            settings = {**settings, CONTENT: hashlib.sha256(listing.encode()).hexdigest()}
        state = self.newest()
        if state is not None and not resume:
            raise FileExistsError(
                f'{self.path} holds a run at {state.name}: add --resume to resume it, or give '
                'another --out'
            )
        if state is None:
            # What a run logged that was killed before its first checkpoint will be done again.
            self.log_file.unlink(missing_ok=True)
        else:
            if not self.settings_file.exists():
                raise FileNotFoundError(
                    f'{self.path} holds {state.name} without the settings.json it was made with: '
                    'give another --out'
                )
            before = json.loads(self.settings_file.read_text())
            if images is not None and before.get(CONTENT, settings[CONTENT]) != settings[CONTENT]:
                raise ValueError(
                    f'the run in {self.path} cannot resume with other images: '
                    f'{self._other_images(images)}. Give those it had, or another --out'
                )
            changed = [
                f'{key}: {before.get(key)!r} before, {value!r} now'
                for key, value in settings.items()
                if before.get(key) != value and (key in before or key not in _LATER)
            ]
            if changed:
                raise ValueError(
                    f'the run in {self.path} cannot resume with other settings ('
                    f'{"; ".join(changed)}): give those it had, or another --out'
                )
        self.states.mkdir(parents=True, exist_ok=True)
        if images is not None:
            write_atomically(self.images_file, listing)
        write_json(self.settings_file, settings)

    def _other_images(self, images: Mapping[str, str]) -> str:
        """What differs from the images that the run had, in words."""
        before = {}
        if self.images_file.is_file():
            for line in self.images_file.read_text(encoding='utf-8').splitlines():
                digest, _, name = line.partition('  ')
                before[name] = digest
        told = []
        for names, what in (
            ([n for n in images if n in before and before[n] != images[n]], 'other content'),
            ([n for n in before if n not in images], 'missing'),
            ([n for n in images if n not in before], 'new'),
        ):
            if names:
                more = f' and {len(names) - 3} more' if len(names) > 3 else ''
                told.append(f'{", ".join(names[:3])}{more} ({what})')
        return '; '.join(told) or 'their order differs'

    def newest(self) -> Path | None:
        """The newest complete state, or None."""
        return max(self.states.glob('step_????????'), default=None)

    def save_state(self, step: int, progress: dict[str, Any], save: Callable[[Path], None]) -> None:
        """Write a state, and remove older ones.

        Args:
            step: Steps done.
            progress: What `read_progress` is to return.
            save: Fills the folder it is given.
        """
        folder = self.states / f'step_{step:08d}'
        unfinished = self.states / f'.{folder.name}'
        save(unfinished)
        progress = {**progress, 'checksums': _checksums(unfinished)}
        (unfinished / 'progress.json').write_text(json.dumps(progress))
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(unfinished, folder)
        for left_over in self.states.glob('.step_*'):
            shutil.rmtree(left_over)
        for old in sorted(self.states.glob('step_????????'))[:-KEPT_STATES]:
            shutil.rmtree(old)

    @staticmethod
    def load_state(state: Path, load: Callable[[str], Any]) -> None:
        """Read a state, and run nothing that its files may hold.

        Args:
            state: Folder of it.
            load: Reads the folder it is given.

        Raises:
            ValueError: If a file is damaged, or names objects that are neither tensors nor values.
        """
        way_out = _way_out(state)
        expected = RunFolder.read_progress(state).get('checksums', {})
        try:
            found = _checksums(state, expected)
        except OSError as error:
            raise ValueError(f'{str(state)!r} is incomplete ({error}). {way_out}') from error
        for name, checksum in expected.items():
            if found[name] != checksum:
                raise ValueError(
                    f'{str(state / name)!r} is damaged: its checksum does not match. {way_out}'
                )
        try:
            with only_weights():
                load(str(state))
        except UnpicklingError as error:
            raise ValueError(
                f'{str(state)!r} is damaged, or holds Python objects that are neither tensors nor '
                f'plain values, and could run code when read ({what_was_refused(error)}). {way_out}'
            ) from error
        except (OSError, RuntimeError, ValueError, EOFError, KeyError, SafetensorError) as error:
            raise ValueError(f'{str(state)!r} cannot be read ({error}). {way_out}') from error

    @staticmethod
    def read_progress(state: Path) -> dict[str, Any]:
        """What was stored next to a state: ``step``, ``images``, ``seconds`` and ``checksums``.

        Raises:
            ValueError: If it is not there, or damaged.
        """
        path = state / 'progress.json'
        try:
            progress = json.loads(check_regular(path).read_text())
            if any(not is_number(progress[name]) for name in ('step', 'images', 'seconds')):
                raise ValueError('it must tell step, images and seconds')
            dict(progress.get('checksums', {}))  # none in states of older versions
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f'{str(path)!r} cannot be read ({error!r}). {_way_out(state)}'
            ) from error
        return progress

    def log(self, record: dict[str, Any]) -> None:
        """Append a line to the log."""
        with self.log_file.open('a') as file:
            file.write(json.dumps(record) + '\n')

    def read_log(self) -> list[dict[str, Any]]:
        """All lines of the log; a last one that a kill cut short is left out."""
        if not self.log_file.exists():
            return []
        lines = self.log_file.read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith('\n')]

    def forget_after(self, step: int) -> None:
        """Drop what the log says of steps after ``step``: they will be done again."""
        records = [r for r in self.read_log() if r['step'] <= step]
        write_atomically(self.log_file, ''.join(json.dumps(r) + '\n' for r in records))

    def plot(self) -> None:
        """Draw loss and probe over the images seen into ``loss.png``."""
        from matplotlib.figure import Figure

        records = self.read_log()
        losses = [r for r in records if 'loss' in r]
        probes = [r for r in records if 'probe' in r]
        if not losses:
            return
        figure = Figure(figsize=(7, 3.5), layout='constrained')
        axes = figure.subplots()
        axes.plot([r['images'] for r in losses], [r['loss'] for r in losses], lw=0.8, label='loss')
        axes.set(xlabel='images seen', ylabel='loss', yscale='log')
        if probes:
            right = axes.twinx()
            best = [100 * max(r['probe'].values()) for r in probes]
            right.plot([r['images'] for r in probes], best, 'C1o-', ms=3)
            right.set_ylabel('best linear probe, %', color='C1')
        with written_aside(self.path / 'loss.png') as aside:
            figure.savefig(aside, dpi=120)
