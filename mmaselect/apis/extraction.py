# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Writes the features of many images: any number of processes, which need not know of each other.

A process claims a unit of images by a lock on a file, reads it, writes its shards and lets it go.
The lock of a process that dies is free at once, so another one takes its unit. No process waits for
another before the end, and what is in a shard depends on its unit alone: the files are the same
whatever the number of processes.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mmaselect.apis.stored_features import (
    DamagedFeaturesError,
    OpenShard,
    Shard,
    check_unit,
    find_shards,
    shard_path,
    write_shard,
)
from mmaselect.files import write_json, written_aside
from mmaselect.images import resize_and_crop
from mmaselect.images.reading import UnreadableImageError, load_rgb
from mmaselect.images.units import ImageRef, ImageUnits, image_digest
from mmaselect.logs import logger
from mmaselect.terminal.progress import progress_bar

#: What features are written as, and how the files' names end.
FORMATS = {'safetensors': '.safetensors', 'webdataset': '.tar', 'parquet': '.parquet'}
CLAIMS = '.claims'
#: Where a launcher tells a process its rank.
_LAUNCHERS = (
    ('RANK', 'WORLD_SIZE', 'LOCAL_RANK'),
    ('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_LOCALID'),
)
#: How often a lock is asked for whose folder goes in between.
_TRIES = 10
#: Seconds between two looks at what other processes have done.
_LOOK_SECONDS = 2.0
#: Seconds between two lines where there is no terminal.
_LINE_SECONDS = 30.0


def rank_and_world() -> tuple[int, int, int]:
    """Rank, number of ranks and rank on this machine, of torchrun or Slurm; (0, 1, 0) else."""
    for names in _LAUNCHERS:
        values = [os.environ.get(name, '') for name in names]
        if all(value.isdecimal() for value in values):
            rank, world, local = map(int, values)
            return rank, world, local
    return 0, 1, 0


class _Claim(FileLock):
    """A lock whose folder may go: who finishes last removes it, while others still begin."""

    def acquire(self, *args: Any, **kwargs: Any) -> Any:
        for _ in range(_TRIES):
            Path(self.lock_file).parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):
                return super().acquire(*args, **kwargs)
        return super().acquire(*args, **kwargs)


def lock(folder: Path, name: str) -> FileLock:
    """The lock that stands for a claim; it goes when its process ends, however that is."""
    return _Claim(folder / CLAIMS / f'{name}.lock', thread_local=False)


class _Loader(Dataset):
    """Reads, hashes, decodes and resizes; references stand for indices."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __getitem__(self, ref: Any) -> tuple[bytes, Tensor] | Exception:
        try:
            data = ref.read()
            pixels = resize_and_crop(load_rgb(ref.path, lambda _: data), self.size)
            # A tensor travels from a worker in shared memory.
            return image_digest(data), torch.from_numpy(pixels.copy())
        except Exception as error:  # raised in the main process, whole
            return error


@dataclass
class _Batch:
    """What goes through the model at once."""

    unit: int
    names: list[str]
    ends_file: bool
    part: int | None
    last: bool
    done: Callable[[], Any]


class Extraction:
    """The units of one folder of features, and this process's share of the work.

    Args:
        units: The images.
        out: The folder.
        key: That all shards of the folder carry.
        names: Names of the tensors in a shard.
        to: One of ``FORMATS``.
        size: Side of the images that the model gets, in pixels.
        shard_size: Images per file.
        batch_size: Images per pass.
        workers: Processes that read and decode images; 0 for this one.
    """

    def __init__(
        self,
        units: ImageUnits,
        out: Path,
        key: str,
        names: Sequence[str],
        to: str,
        size: int,
        shard_size: int,
        batch_size: int,
        workers: int,
    ) -> None:
        self.units, self.out, self.key, self.names, self.to = units, out, key, list(names), to
        self.size, self.shard_size, self.batch_size = size, shard_size, batch_size
        self.workers = workers
        self.rank, self.world, _ = rank_and_world()
        self.suffix = FORMATS[to]
        self._unchecked: set[int] = set()
        self._held: list[ExitStack] = []

    # -- what is there ----------------------------------------------------------------------------
    def _found(self) -> dict[int, list[Path]]:
        return find_shards(self.out, self.suffix)

    def _about(self, path: Path, whole: bool) -> Shard:
        """What a shard says of itself; checked to its last byte if ``whole``."""
        if self.to == 'safetensors':
            opened = OpenShard(path, self.names)
            for name in self.names if whole else ():
                opened.whole(name)
            return opened.about
        try:
            noted = json.loads(_note(path).read_text(encoding='utf-8'))
            digest = noted.pop('sha256')
            about = Shard(**noted)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise DamagedFeaturesError(path, f'{_note(path).name}: {error!r}') from error
        if whole and _file_digest(path) != digest:
            raise DamagedFeaturesError(path, 'its checksum is not that of its content')
        return about

    def stored(self, unit: int, whole: bool) -> list[Shard]:
        """What the files of a unit say of themselves; empty if one is missing.

        Raises:
            DamagedFeaturesError: If one is damaged.
        """
        paths = self._found_of(unit)
        if not paths:
            return []
        pairs = [(path, self._about(path, whole)) for path in paths]
        if not pairs[-1][1].last:
            return []
        return [about for _, about in check_unit(pairs, self.key, unit)]

    def _found_of(self, unit: int) -> list[Path]:
        if not self.units.has_parts:
            path = shard_path(self.out, unit, None, self.suffix)
            return [path] if path.is_file() else []
        return self._found().get(unit, [])

    def matches(self, unit: int, whole: bool = True) -> bool:
        """Whether the files of a unit are there, and are of its images as they are now."""
        stored = self.stored(unit, whole)
        if not stored:
            return False
        names = [name for about in stored for name in about.names]
        stamp = self.units.stamp(unit)
        if stamp is not None:
            return all(about.stamp == stamp for about in stored)
        if self.units.names(unit) not in (None, names):
            return False
        with self.units.open(unit) as refs:
            if [ref.name for ref in refs] != names:
                return False
            images = [image for about in stored for image in about.images]
            return all(
                image_digest(ref.read()).hex() == image
                for ref, image in zip(refs, images, strict=True)
            )

    def is_of_other_images(self) -> bool:
        """Whether there are features, and those of no unit are of its images.

        What is there now is not trusted: its content is compared with that of the images.
        """
        self._unchecked = set(self._found())
        for unit in sorted(self._unchecked):
            if unit < len(self.units):
                try:
                    if self.matches(unit):
                        return False
                except (DamagedFeaturesError, UnreadableImageError, OSError):
                    continue
        return bool(self._unchecked)

    def _is_done(self, unit: int) -> bool:
        if unit not in self._unchecked:
            return self._is_there(unit)
        if unit % self.world != self.rank:
            return True  # the process of that rank looks at it
        self._unchecked.discard(unit)
        try:
            if self.matches(unit):
                return True
            why = 'its images have changed'
        except (DamagedFeaturesError, UnreadableImageError, OSError) as error:
            why = str(error)
        logger.warning(
            'features: %s is computed again: %s',
            shard_path(self.out, unit, None, self.suffix).name,
            why,
        )
        self._remove(unit)
        return False

    def _is_there(self, unit: int) -> bool:
        """Whether a process has written the unit to its end."""
        try:
            return bool(self.stored(unit, whole=False))
        except (DamagedFeaturesError, UnreadableImageError, OSError):
            return False

    def _remove(self, unit: int) -> None:
        for path in self._found_of(unit):
            path.unlink(missing_ok=True)
            _note(path).unlink(missing_ok=True)

    def remove_all(self) -> None:
        """Remove all features, of any format."""
        for suffix in FORMATS.values():
            for paths in find_shards(self.out, suffix).values():
                for path in paths:
                    path.unlink(missing_ok=True)
                    _note(path).unlink(missing_ok=True)
        self._unchecked = set()

    # -- the work ---------------------------------------------------------------------------------
    def run(self, read: Callable[[list[Any]], dict[str, Tensor]], progress: bool) -> None:
        """Write what is missing, and return when all is there.

        Args:
            read: Takes images (H, W, 3) uint8, and gives tensors (images, ...) by name.
            progress: Tell how far all processes are.

        Raises:
            ValueError: If an image cannot be read.
        """
        for unit in [unit for unit in self._unchecked if unit >= len(self.units)]:
            self._remove(unit)  # of a set that had more images
            self._unchecked.discard(unit)
        with _Tally(self, progress and self.rank == 0) as tally:
            while True:
                self._work(read, tally)
                if all(self._is_there(unit) for unit in range(len(self.units))):
                    break
                time.sleep(_LOOK_SECONDS / 4)  # others are at what is left
        shutil.rmtree(self.out / CLAIMS, ignore_errors=True)

    def _order(self) -> list[int]:
        """All units; processes begin at different ones."""
        count = len(self.units)
        start = count * self.rank // self.world
        return [(start + step) % count for step in range(count)]

    def _claims(self) -> Iterator[tuple[int, list[ImageRef], str | None, ExitStack]]:
        """Units that nobody else is at, one after the other, with their images."""
        for unit in self._order():
            if self._is_done(unit):
                continue
            claim = lock(self.out, f'{unit:05d}')
            try:
                claim.acquire(blocking=False)
            except Timeout:
                continue
            stack = ExitStack()
            stack.callback(claim.release)
            self._held.append(stack)
            try:
                if self._is_done(unit):
                    stack.close()
                    continue
                self._remove(unit)  # parts of it that a process left which was ended
                stamp = self.units.stamp(unit)
                refs = stack.enter_context(self.units.open(unit))
                if not refs:
                    raise ValueError(f'unit {unit} of the images holds no image: leave it out')
            except BaseException:
                stack.close()
                raise
            yield unit, refs, stamp, stack

    def _batches(
        self, plans: deque[tuple[_Batch, str | None]]
    ) -> Generator[list[ImageRef], None, None]:
        """References of a batch at a time; what to do with it is put into ``plans``."""
        claims = self._claims()
        # The next unit is fetched while this one is read.
        with ThreadPoolExecutor(1) as pool:
            ahead = pool.submit(next, claims, None)
            try:
                while (found := ahead.result()) is not None:
                    ahead = pool.submit(next, claims, None)
                    unit, refs, stamp, stack = found
                    files = range(0, len(refs), self.shard_size)
                    for part, start in enumerate(files):
                        file = refs[start : start + self.shard_size]
                        for first in range(0, len(file), self.batch_size):
                            batch = file[first : first + self.batch_size]
                            ends = first + len(batch) == len(file)
                            last = ends and part + 1 == len(files)
                            plan = _Batch(
                                unit,
                                [ref.name for ref in batch],
                                ends,
                                part if self.units.has_parts else None,
                                last,
                                stack.close if last else lambda: None,
                            )
                            plans.append((plan, stamp))
                            yield batch
            finally:
                left = ahead.result() if not ahead.cancel() else None
                if left is not None:
                    left[3].close()

    def _work(self, read: Callable[[list[Any]], dict[str, Tensor]], tally: _Tally) -> None:
        plans: deque[tuple[_Batch, str | None]] = deque()
        batches = self._batches(plans)
        loader = DataLoader(
            _Loader(self.size),
            batch_sampler=batches,
            num_workers=self.workers,
            collate_fn=list,
        )
        try:
            self._read_and_write(loader, plans, read, tally)
        finally:
            batches.close()
            while self._held:
                self._held.pop().close()

    def _read_and_write(
        self,
        loader: DataLoader,
        plans: deque[tuple[_Batch, str | None]],
        read: Callable[[list[Any]], dict[str, Tensor]],
        tally: _Tally,
    ) -> None:
        parts: list[dict[str, Tensor]] = []
        names: list[str] = []
        digests: list[bytes] = []
        for loaded in loader:
            plan, stamp = plans.popleft()
            for item in loaded:
                if isinstance(item, Exception):
                    raise item
            parts.append(read([pixels.numpy() for _, pixels in loaded]))
            names += plan.names
            digests += [digest for digest, _ in loaded]
            tally.add(len(loaded))
            if not plan.ends_file:
                continue
            tensors = {name: torch.cat([part[name] for part in parts]) for name in self.names}
            about = Shard(
                self.key,
                plan.unit,
                plan.part or 0,
                plan.last,
                names,
                [digest.hex() for digest in digests],
                [],
                stamp,
            )
            self._write(shard_path(self.out, plan.unit, plan.part, self.suffix), tensors, about)
            parts, names, digests = [], [], []
            if plan.last:
                plan.done()
                tally.look()

    def _write(self, path: Path, tensors: Mapping[str, Tensor], about: Shard) -> None:
        if self.to == 'safetensors':
            write_shard(path, tensors, about)
            return
        writer = _write_tar if self.to == 'webdataset' else _write_parquet
        with written_aside(path) as aside:
            writer(aside, tensors, about)
        write_json(_note(path), {**asdict(about), 'sha256': _file_digest(path)})


class _Tally:
    """Images that all processes have done, how fast, and how long it will take."""

    def __init__(self, work: Extraction, shown: bool) -> None:
        self.work, self.shown = work, shown
        self.total = work.units.total
        self._started = time.monotonic()
        self._looked = 0.0
        self._told = self._started
        self._own = 0
        self._at_start: int | None = None
        self._stack = ExitStack()

    def __enter__(self) -> _Tally:
        bar = progress_bar('images', disable=not self.shown or not sys.stderr.isatty())
        self._bar = self._stack.enter_context(bar)
        self._task = self._bar.add_task('reading features', total=self.total)
        self.look()
        return self

    def __exit__(self, *error: Any) -> None:
        if error[0] is None:
            self.look(ended=True)
        self._stack.close()

    def add(self, images: int) -> None:
        """Count images of this process."""
        self._own += images
        if time.monotonic() - self._looked > _LOOK_SECONDS:
            self.look()

    def look(self, ended: bool = False) -> None:
        """Count what all processes have written, and tell."""
        if not self.shown:
            return
        self._looked = time.monotonic()
        units = self.work.units
        found = len(self.work._found())
        done = round(found / len(units) * self.total) if self.total else found
        if self._at_start is None:
            self._at_start = done
        self._bar.update(self._task, completed=done)
        seconds = self._looked - self._started
        due = self._looked - self._told > _LINE_SECONDS or ended
        if sys.stderr.isatty() or not due:
            return
        self._told = self._looked
        rate = max((done - self._at_start), self._own if self.total else 0) / seconds
        what = 'images' if self.total else 'units'
        total = self.total or len(units)
        left = '' if not rate or done >= total else f', {(total - done) / rate / 60:.1f} min left'
        ranks = f' over {self.work.world} processes' if self.work.world > 1 else ''
        line = f'features: {done:,} of {total:,} {what}, {rate:.1f} {what}/s{ranks}{left}'
        print(line, file=sys.stderr, flush=True)


def _note(path: Path) -> Path:
    """Next to a file that has no room for it: what it says of itself."""
    return path.with_name(path.name + '.json')


def _file_digest(path: Path) -> str:
    with path.open('rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def _write_tar(path: Path, tensors: Mapping[str, Tensor], about: Shard) -> None:
    """A shard of webdataset: for each image an array for each feature, and its name."""
    import webdataset

    with webdataset.TarWriter(str(path), mtime=0) as writer:
        for row, (name, image) in enumerate(zip(about.names, about.images, strict=True)):
            writer.write(
                {
                    '__key__': f'{about.unit:05d}-{about.part:05d}-{row:06d}',
                    **{f'{key}.npy': tensor[row].numpy() for key, tensor in tensors.items()},
                    'json': dict(path=name, image=image),
                }
            )


def _write_parquet(path: Path, tensors: Mapping[str, Tensor], about: Shard) -> None:
    """A table with a row for each image: its name, its hash, and a list of values per feature."""
    import pyarrow
    import pyarrow.parquet

    columns: dict[str, Any] = {'path': about.names, 'image': about.images}
    shapes = {}
    for name, tensor in tensors.items():
        values = pyarrow.array(tensor.reshape(-1).numpy())
        width = tensor[0].numel()
        columns[name] = pyarrow.FixedSizeListArray.from_arrays(values, width)
        shapes[name] = list(tensor.shape[1:])
    table = pyarrow.table(columns).replace_schema_metadata({'shapes': json.dumps(shapes)})
    pyarrow.parquet.write_table(table, path)
