# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Folders of features: what is in their files, how it is checked, and how it is read.

A folder holds ``index.json``, which says what the features are, and shards of them. Each shard says
itself which images it holds, by name and by a hash of their content, and has a checksum of each
row, so nothing is read that is not what was written.
"""

from __future__ import annotations

import bisect
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mmaselect.checks import choice
from mmaselect.diffusion import TapKey
from mmaselect.files import check_regular, write_json, written_aside
from mmaselect.row_checks import RowReader, row_checks

INDEX = 'index.json'
FRAMEWORKS = ('torch', 'numpy')
#: Version of the folders; features of another version are computed anew.
FORMAT = 2
_NAME = re.compile(r'features-(\d{5,})(?:-(\d{5,}))?')
_ABOUT = 'about'


class DamagedFeaturesError(ValueError):
    """A file of a folder of features that is not what was written.

    Args:
        path: The file.
        why: Reason, in words.
    """

    def __init__(self, path: str | Path, why: str) -> None:
        is_index = Path(path).name == INDEX
        super().__init__(
            f'{str(path)!r} is damaged, or was edited ({why}). '
            + (
                'Run the command that wrote the folder again, with --overwrite (overwrite=True)'
                if is_index
                else 'Run the command that wrote the folder again: it computes that file anew'
            )
        )
        self.path, self.why = Path(path), why


@dataclass(frozen=True)
class Shard:
    """What a shard says of itself.

    Attributes:
        key: Key of the folder that it belongs to, see :func:`settings_of`.
        unit: Number of the unit of images.
        part: Number of the file within the unit.
        last: Whether it is the unit's last one.
        names: Names of its images.
        images: Hashes of their content, in hexadecimal digits.
        checks: A checksum for each row and tensor.
        stamp: What a remote store said of the content of the unit.
    """

    key: str
    unit: int
    part: int
    last: bool
    names: list[str]
    images: list[str]
    checks: list[list[int]]
    stamp: str | None = None

    @property
    def owners(self) -> list[bytes]:
        """What each row belongs to: image and name."""
        pairs = zip(self.images, self.names, strict=True)
        return [f'{image} {name}'.encode() for image, name in pairs]


def shard_path(
    folder: Path, unit: int, part: int | None = None, suffix: str = '.safetensors'
) -> Path:
    """The file of a unit's part; of the whole unit if ``part`` is None."""
    more = '' if part is None else f'-{part:05d}'
    return folder / f'features-{unit:05d}{more}{suffix}'


def tensor_name(key: TapKey) -> str:
    """Name of a feature's tensor in a file."""
    return f'block{key[0]}.{key[1]}'


def write_shard(path: Path, tensors: Mapping[str, Tensor], shard: Shard) -> None:
    """Write a shard, with its checksums: the same bytes for the same content.

    Raises:
        OSError: If it cannot be written: the disk is full, say.
    """
    shard = Shard(**{**asdict(shard), 'checks': row_checks(tensors, shard.owners).tolist()})
    with written_aside(path) as aside:
        # One entry: safetensors writes several in an order that differs.
        try:
            save_file(dict(tensors), aside, {_ABOUT: json.dumps(asdict(shard))})
        except SafetensorError as error:
            raise OSError(f'{str(path)!r} cannot be written ({error})') from error


class OpenShard:
    """A shard's file: what it says of itself at once, each row when it is asked for.

    Args:
        path: The file.
        names: Names of the tensors that must be in it.

    Raises:
        FileNotFoundError: If there is no such file.
        DamagedFeaturesError: If it is cut off, or lacks something.
    """

    def __init__(self, path: Path, names: Sequence[str]) -> None:
        self.path = path
        try:
            with safe_open(check_regular(path), framework='pt') as file:
                self.about = Shard(**json.loads((file.metadata() or {})[_ABOUT]))
                # Memory-mapped: nothing is read here.
                self.tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if sorted(self.tensors) != sorted(names):
                raise ValueError(f'its tensors are {sorted(self.tensors)}, not {sorted(names)}')
            self.owners = self.about.owners
            checks = torch.tensor(self.about.checks, dtype=torch.int64)
            self._reader = RowReader(self.tensors, checks.view(len(self.owners), len(names)))
        except FileNotFoundError:
            raise
        except OSError as error:
            raise OSError(f'{str(path)!r} cannot be read ({error})') from error
        except (
            *(SafetensorError, ValueError, TypeError, KeyError, AttributeError, RuntimeError),
            RecursionError,
        ) as error:
            raise DamagedFeaturesError(path, f'{type(error).__name__}: {error}') from error

    def __len__(self) -> int:
        return len(self.owners)

    def row(self, name: str, row: int) -> Tensor:
        """A row of a tensor.

        Raises:
            DamagedFeaturesError: If it is not what was written.
        """
        self._check(name, row)
        return self.tensors[name][row]

    def whole(self, name: str) -> Tensor:
        """All rows of a tensor, memory-mapped.

        Raises:
            DamagedFeaturesError: If one is not what was written.
        """
        for row in range(len(self)):
            self._check(name, row)
        return self.tensors[name]

    def _check(self, name: str, row: int) -> None:
        if not self._reader.is_whole(row, self.owners[row], [name]):
            raise DamagedFeaturesError(
                self.path, f'{name} of image {self.about.names[row]!r} is not what was written'
            )


def index_key(index: Mapping[str, Any]) -> str:
    """What a folder's shards must carry: a hash of all that features depend on but the images."""
    parts = [index['format'], index['settings'], index['model']]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _checksum(index: Mapping[str, Any]) -> str:
    rest = {name: value for name, value in index.items() if name != 'checksum'}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()[:32]


def write_index(folder: Path, index: Mapping[str, Any]) -> None:
    """Write ``index.json``, with a checksum of the rest of it."""
    write_json(folder / INDEX, {**index, 'checksum': _checksum(index)})


def read_index(folder: Path) -> dict[str, Any]:
    """What ``index.json`` says.

    Raises:
        FileNotFoundError: If there is none.
        DamagedFeaturesError: If it was written by another version, is damaged, or was edited.
    """
    path = folder / INDEX
    if not path.is_file():
        raise FileNotFoundError(
            f'{str(folder)!r} holds no {INDEX}: give a folder that `mmaselect features` wrote'
        )
    try:
        index = json.loads(path.read_text(encoding='utf-8'))
    except (ValueError, RecursionError) as error:
        raise DamagedFeaturesError(path, f'{type(error).__name__}: {error}') from error
    if not isinstance(index, dict) or index.get('format') != FORMAT:
        found = index.get('format') if isinstance(index, dict) else type(index).__name__
        raise DamagedFeaturesError(
            path, f'its format is {found!r}, and that of this version {FORMAT}'
        )
    if index.get('checksum') != _checksum(index):
        raise DamagedFeaturesError(path, 'its checksum is not that of its content')
    return index


def find_shards(folder: Path, suffix: str = '.safetensors') -> dict[int, list[Path]]:
    """The files of each unit, in order; of some units, the last ones may be missing."""
    parts: dict[int, dict[int, Path]] = {}
    for path in folder.glob(f'features-*{suffix}'):
        match = _NAME.fullmatch(path.name.removesuffix(suffix))
        if match is not None:
            parts.setdefault(int(match[1]), {})[int(match[2] or 0)] = path
    return {unit: [found[n] for n in sorted(found)] for unit, found in sorted(parts.items())}


def check_unit(
    shards: Sequence[tuple[Path, Shard]], key: str, unit: int
) -> Sequence[tuple[Path, Shard]]:
    """What the files of a unit say of themselves, checked to belong together.

    Raises:
        DamagedFeaturesError: If one is missing, or belongs elsewhere.
    """
    for number, (path, about) in enumerate(shards):
        if about.key != key:
            raise DamagedFeaturesError(path, 'it belongs to features of other settings')
        if (about.unit, about.part) != (unit, number):
            raise DamagedFeaturesError(
                path, f'it is part {about.part} of unit {about.unit}, under another name'
            )
        if about.last != (number == len(shards) - 1):
            raise DamagedFeaturesError(path, 'parts of its unit are missing, or too many')
    return shards


def load_features(folder: str | Path, framework: str = 'torch') -> StoredFeatures:
    """Open a folder that :func:`save_features`, or ``mmaselect features``, has written.

    Args:
        folder: The folder.
        framework: ``'torch'`` for tensors, ``'numpy'`` for arrays.

    Returns:
        StoredFeatures: Memory-mapped: only what is asked for is read. :func:`save_features` has an
        example.
    """
    return StoredFeatures(folder, framework)


class StoredFeatures:
    """Features in files, an image at a time or all at once; a map-style data set of PyTorch's.

    Each row is compared with its checksum when it is first read.

    Args:
        folder: What :func:`save_features` has written.
        framework: ``'torch'`` or ``'numpy'``.

    Attributes:
        settings (dict): What the features are: model, blocks, image size, and so on.
        timestep (int): Where they were read.
        paths (list[str]): Image of each entry, from the folder of images.
        images (list[str]): Hash of each image's file, in hexadecimal digits.
        keys (tuple[TapKey, ...]): (block, feature) of every map.

    Raises:
        FileNotFoundError: If the folder holds no features, or some of them are missing.
        DamagedFeaturesError: If a file is not what was written.
    """

    def __init__(self, folder: str | Path, framework: str = 'torch') -> None:
        choice('framework', framework, FRAMEWORKS)
        self.folder = Path(folder).expanduser()
        self.framework = framework
        index = read_index(self.folder)
        self.settings: dict[str, Any] = index['settings']
        if 'timestep' not in index:
            raise FileNotFoundError(f'{str(folder)!r}: {_UNFINISHED.format("a timestep")}')
        self.timestep: int = index['timestep']
        if framework == 'numpy' and self.settings['store'] == 'bf16':
            raise ValueError("NumPy has no type for bf16: use framework='torch'")
        if self.settings['to'] != 'safetensors':
            raise ValueError(
                f'{str(folder)!r} holds {self.settings["to"]} files: read them with the library '
                f'of that name. Only features saved as safetensors are opened here'
            )
        cells = self.settings.get('cells') or [
            (block, feature)
            for block in dict.fromkeys(self.settings['blocks'])
            for feature in self.settings['features']
        ]
        self.keys: tuple[TapKey, ...] = tuple((block, feature) for block, feature in cells)
        self._names = [tensor_name(key) for key in self.keys]
        found, units = find_shards(self.folder), int(index['images']['units'])
        missing = [unit for unit in range(units) if unit not in found]
        if missing:
            raise FileNotFoundError(
                f'{str(folder)!r}: '
                + _UNFINISHED.format(
                    f'{len(missing)} of {units} files, such as '
                    f'{shard_path(Path(), missing[0]).name}'
                )
            )
        self._files: list[Path] = []
        self._starts: list[int] = []
        self.paths: list[str] = []
        self.images: list[str] = []
        self._open: dict[int, OpenShard] = {}
        key = index_key(index)
        for unit in range(units):
            opened = [(path, OpenShard(path, self._names).about) for path in found[unit]]
            for path, about in check_unit(opened, key, unit):
                self._starts.append(len(self.paths))
                self._files.append(path)
                self.paths += about.names
                self.images += about.images

    def __getstate__(self) -> dict[str, Any]:
        # Workers of a DataLoader open the files themselves.
        return {**self.__dict__, '_open': {}}

    def _file(self, number: int) -> OpenShard:
        if number not in self._open:
            self._open[number] = OpenShard(self._files[number], self._names)
        return self._open[number]

    def _given(self, tensor: Tensor) -> Any:
        return tensor if self.framework == 'torch' else tensor.numpy()

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[TapKey, Any]:
        """(block, feature) to the map (C, H, W) of one image, or (C,) where they were pooled."""
        if not -len(self) <= index < len(self):
            raise IndexError(f'index {index} is out of range: there are {len(self)} images')
        index %= len(self)
        number = bisect.bisect_right(self._starts, index) - 1
        file, row = self._file(number), index - self._starts[number]
        return {key: self._given(file.row(tensor_name(key), row).clone()) for key in self.keys}

    def shards(self) -> Iterator[tuple[list[str], dict[TapKey, Any]]]:
        """Paths and features (images, C, H, W) of a file at a time."""
        for number, start in enumerate(self._starts):
            file = self._file(number)
            yield (
                self.paths[start : start + len(file)],
                {key: self._given(file.whole(tensor_name(key))) for key in self.keys},
            )

    def stack(self, block: int, feature: str = 'query') -> Any:
        """One feature of all images, (images, C, H, W): a copy in memory.

        Raises:
            KeyError: If it was not stored.
        """
        if (block, feature) not in self.keys:
            raise KeyError(f'{(block, feature)} is not stored; there are {list(self.keys)}')
        files = (self._file(number) for number in range(len(self._files)))
        parts = [self._given(file.whole(tensor_name((block, feature)))) for file in files]
        return torch.cat(parts) if self.framework == 'torch' else np.concatenate(parts)


_UNFINISHED = 'it lacks {}: run the command that writes the folder again, and it resumes'
