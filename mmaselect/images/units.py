# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Images in units that are read on their own: parts of a folder, archives, rows of parquet files.

A unit is what one process claims, reads and is done with, so that any number of processes can share
a set of images. Addresses with a scheme (``s3://``, ``gs://``, ``https://``) go through fsspec.
"""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
import tempfile
import zipfile
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from mmaselect.checks import check_path, is_sequence, shorten
from mmaselect.images.reading import load_rgb, naming_image
from mmaselect.images.sources import (
    IMAGE_KINDS,
    IMAGE_SUFFIXES,
    KINDS_OF_SUFFIX,
    ImageFolder,
    ImageSource,
    has_pattern,
    is_hugging_face,
    path_kind,
)
from mmaselect.install import install_hint

#: Bytes of an image's digest.
DIGEST_SIZE = 16
#: What object stores say of a file's content, by the names that they give it.
_STAMPS = ('ETag', 'etag', 'Content-MD5', 'md5Hash', 'crc32c', 'content_md5', 'sha256')
_INSTALL = f'needs {{0}}: {install_hint("shards")}'


@dataclass(frozen=True)
class ImageRef:
    """Where the encoded bytes of one image are.

    Attributes:
        name: What the image is called: unique within the set, with ``/`` between folders.
        where: A path, an address with a scheme, or the bytes themselves.
        span: First byte and number of bytes, where the file holds more than the image.
        member: Name in a zip file.
    """

    name: str
    where: str | bytes
    span: tuple[int, int] | None = None
    member: str | None = None

    @property
    def path(self) -> str:
        """How messages call it: the path of its file, if it has one of its own."""
        is_part = isinstance(self.where, bytes) or self.span or self.member
        return self.name if is_part else str(self.where)

    def read(self) -> bytes:
        """The encoded bytes.

        Raises:
            UnreadableImageError: If they cannot be read.
        """
        with naming_image(self.path):
            return self._bytes()

    def _bytes(self) -> bytes:
        if isinstance(self.where, bytes):
            return self.where
        if '://' in self.where:
            system, path = _file_system(self.where)
            return system.cat_file(path)
        file_path = Path(self.where)
        if not file_path.is_file():
            raise OSError('it is gone, or no regular file')
        if self.member is not None:
            return _opened_zip(self.where, file_path.stat().st_mtime_ns, os.getpid()).read(
                self.member
            )
        if self.span is None:
            return file_path.read_bytes()
        with file_path.open('rb') as file:
            file.seek(self.span[0])
            return file.read(self.span[1])


@lru_cache(maxsize=8)
def _opened_zip(path: str, changed: int, process: int) -> zipfile.ZipFile:
    """A zip file, whose table of contents is read once in each process."""
    return zipfile.ZipFile(path)


def image_digest(data: bytes) -> bytes:
    """What an image is known by: a hash of its encoded bytes."""
    return hashlib.sha256(data).digest()[:DIGEST_SIZE]


class ImageUnits(ABC):
    """A set of images in an order that does not change, cut into units.

    Attributes:
        has_parts (bool): Whether a unit may hold more images than one file of features.
        holds_bytes (bool): Whether the references of an opened unit are the images themselves.
        total (int | None): Number of all images, where that is known beforehand.
    """

    has_parts = True
    holds_bytes = False
    total: int | None = None

    @abstractmethod
    def __len__(self) -> int:
        """Number of units."""

    def count(self, number: int) -> int:
        """Number of images of a unit."""
        with self.open(number) as refs:
            return len(refs)

    @abstractmethod
    def open(self, number: int) -> Any:
        """A context with the references of a unit's images, in their order."""

    @abstractmethod
    def listing(self) -> dict[str, Any]:
        """What tells this set from others before an image is read; JSON-ready."""

    def names(self, number: int) -> list[str] | None:
        """Names of a unit's images, where they are known beforehand."""
        return None

    def stamp(self, number: int) -> str | None:
        """What a store says of the content of a remote unit; None for one that must be read."""
        return None


class _Listed(ImageUnits):
    """Files that are listed beforehand, so many of them to a unit."""

    has_parts = False

    def __init__(self, refs: Sequence[ImageRef], size: int, what: str) -> None:
        self.refs, self.size, self.what = list(refs), size, what
        self.total = len(self.refs)

    def __len__(self) -> int:
        return -(-len(self.refs) // self.size)

    def _part(self, number: int) -> list[ImageRef]:
        return self.refs[number * self.size : (number + 1) * self.size]

    @contextmanager
    def open(self, number: int) -> Iterator[list[ImageRef]]:
        yield self._part(number)

    def count(self, number: int) -> int:
        return len(self._part(number))

    def names(self, number: int) -> list[str]:
        return [ref.name for ref in self._part(number)]

    def stamp(self, number: int) -> str | None:
        if '://' not in str(self.refs[0].where):
            return None
        stamps = [_stamp_of(str(ref.where)) for ref in self._part(number)]
        return None if None in stamps else _hash(stamps)

    def listing(self) -> dict[str, Any]:
        return dict(
            kind=self.what, count=len(self.refs), names=_hash([ref.name for ref in self.refs])
        )


class _Archives(ImageUnits):
    """Files that hold many images: a unit each.

    Attributes:
        kind: ``'tar'``, shards as webdataset writes them, or ``'zip'``.
    """

    kind: str

    def __init__(self, files: Sequence[str]) -> None:
        self.files = list(files)

    def __len__(self) -> int:
        return len(self.files)

    @contextmanager
    def open(self, number: int) -> Iterator[list[ImageRef]]:
        file = self.files[number]
        with _local(file) as path:
            yield list(self._members(path, PurePosixPath(file).name, file))

    @abstractmethod
    def _members(self, path: str, name: str, shown: str) -> Iterator[ImageRef]:
        """The images of an archive.

        Args:
            path: The file on this machine.
            name: Name of the archive, which begins those of its images.
            shown: How messages call it.
        """

    def stamp(self, number: int) -> str | None:
        file = self.files[number]
        return _stamp_of(file) if '://' in file else None

    def listing(self) -> dict[str, Any]:
        names = [PurePosixPath(file).name for file in self.files]
        return dict(kind=self.kind, count=len(names), names=_hash(names))


class _Tars(_Archives):
    kind = 'tar'

    def _members(self, path: str, name: str, shown: str) -> Iterator[ImageRef]:
        try:
            with tarfile.open(path, 'r:') as opened:
                for member in opened:
                    inner = member.name.removeprefix('./')
                    if member.isfile() and _is_image(inner):
                        yield ImageRef(f'{name}/{inner}', path, (member.offset_data, member.size))
        except (tarfile.TarError, OSError) as error:
            raise ValueError(
                f'{shown!r} is not a tar shard ({error}): give uncompressed tar files, as '
                f'webdataset writes them'
            ) from error


class _Zips(_Archives):
    kind = 'zip'

    def _members(self, path: str, name: str, shown: str) -> Iterator[ImageRef]:
        try:
            with zipfile.ZipFile(path) as opened:
                entries = opened.infolist()
        except (zipfile.BadZipFile, OSError) as error:
            raise ValueError(f'{shown!r} is not a zip file, or is damaged ({error})') from error
        for entry in entries:
            if _is_image(entry.filename):
                yield ImageRef(f'{name}/{entry.filename}', path, member=entry.filename)


def _is_image(member: str) -> bool:
    """Whether an archive's entry is an image: by its suffix, as in a folder, and not hidden."""
    parts = PurePosixPath(member).parts
    hidden = any(part.startswith(('.', '__MACOSX')) for part in parts)
    return member.lower().endswith(IMAGE_SUFFIXES) and not hidden


class _Parquets(ImageUnits):
    """Parquet files with a column of images: each row group is a unit."""

    holds_bytes = True

    def __init__(self, files: Sequence[str], column: str | None) -> None:
        try:
            import pyarrow.parquet
        except ImportError as error:
            raise ImportError(f'a parquet file {_INSTALL.format("pyarrow")}') from error
        self._read: Any = pyarrow.parquet.ParquetFile
        self.files, self.column = list(files), column
        self.groups: list[tuple[int, int, int]] = []
        self._ends: list[int] = []
        self.total = 0
        for place, file in enumerate(self.files):
            with self._opened(file) as opened:
                for group in range(opened.num_row_groups):
                    self.groups.append((place, group, self.total))
                    self.total += opened.metadata.row_group(group).num_rows
                    self._ends.append(self.total)

    @contextmanager
    def _opened(self, file: str) -> Iterator[Any]:
        import pyarrow

        try:
            if '://' in file:
                system, path = _file_system(file)
                with system.open(path) as stream:
                    yield self._read(stream)
            else:
                with self._read(file) as opened:
                    yield opened
        except pyarrow.ArrowInvalid as error:
            raise ValueError(f'{file!r} is not a parquet file, or is damaged ({error})') from error

    def __len__(self) -> int:
        return len(self.groups)

    @contextmanager
    def open(self, number: int) -> Iterator[list[ImageRef]]:
        place, group, first = self.groups[number]
        file = self.files[place]
        with self._opened(file) as opened:
            column = image_column(opened.schema_arrow, self.column, file)
            rows = opened.read_row_group(group, columns=[column])[column].to_pylist()
        yield [_of_row(value, first + row) for row, value in enumerate(rows)]

    def count(self, number: int) -> int:
        return self._ends[number] - self.groups[number][2]

    def stamp(self, number: int) -> str | None:
        file = self.files[self.groups[number][0]]
        return _stamp_of(file) if '://' in file else None

    def listing(self) -> dict[str, Any]:
        names = [PurePosixPath(file).name for file in self.files]
        return dict(kind='parquet', count=self.total, names=_hash(names), column=self.column)


class _Dataset(ImageUnits):
    """A Hugging Face data set with a column of images: so many rows to a unit."""

    has_parts = False
    holds_bytes = True

    def __init__(self, dataset: Any, size: int, column: str | None) -> None:
        import datasets

        column = image_column(dataset.features.arrow_schema, column, 'the data set')
        # Encoded, as they are stored: they are hashed and decoded here as any others are.
        if isinstance(dataset.features[column], datasets.Image):
            dataset = dataset.cast_column(column, datasets.Image(decode=False))
        self.dataset, self.size, self.column = dataset, size, column
        self.total = len(dataset)
        if not self.total:
            raise ValueError('the data set is empty: at least one image is needed')

    def __len__(self) -> int:
        return -(-len(self.dataset) // self.size)

    @contextmanager
    def open(self, number: int) -> Iterator[list[ImageRef]]:
        first = number * self.size
        values = self.dataset[first : first + self.size][self.column]
        yield [_of_row(value, first + row) for row, value in enumerate(values)]

    def count(self, number: int) -> int:
        return min(self.size, len(self.dataset) - number * self.size)

    def listing(self) -> dict[str, Any]:
        return dict(kind='dataset', count=self.total, column=self.column)


def image_column(schema: Any, column: str | None, where: str) -> str:
    """The column that holds encoded images.

    Args:
        schema: Schema of pyarrow.
        column: Its name; the only one that can be it if None.
        where: What a message calls the table.

    Raises:
        ValueError: If there is no such column, or several could be meant.
    """
    import pyarrow

    def holds_bytes(kind: Any) -> bool:
        if pyarrow.types.is_struct(kind):
            return any(field.name == 'bytes' for field in kind)
        return pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind)

    found = [field.name for field in schema if holds_bytes(field.type)]
    if column is not None and column in found:
        return column
    if column is None and len(found) == 1:
        return found[0]
    raise ValueError(
        f'{where!r} has the columns {schema.names}, of which {found or "no one"} can hold encoded '
        f'images: name one with column (--column)'
        + ('' if column is None else f'; got {shorten(column)}')
    )


def _of_row(value: Any, row: int) -> ImageRef:
    """The reference of an image in a table."""
    data, path = (
        (value.get('bytes'), value.get('path')) if isinstance(value, Mapping) else (value, None)
    )
    name = f'{row:09d}' if not path else f'{row:09d}/{PurePosixPath(path).name}'
    if data is None and not path:
        raise ValueError(f'row {row} of the table holds no image: remove it')
    return ImageRef(name, bytes(data) if data is not None else str(path))


def image_units(images: Any, size: int, column: str | None = None) -> ImageUnits:
    """The images that a user names, in units.

    Args:
        images: A folder, searched recursively; image files; a text file with the path of an image
            on each line (of MMPretrain's ``path label``, the path); zip files, tar shards or
            parquet files; each with ``*`` or ``{000..099}`` for several. A data set of
            ``datasets``, the folder that its ``save_to_disk`` wrote, or ``datasets://NAME/SPLIT``
            from the hub; any of the paths with a scheme that fsspec knows (``s3://``, ``gs://``,
            ``https://``, ``file://``); or a list of paths.
        size: Images to a unit, where nothing else sets it.
        column: Column of a table: the one that holds encoded images.

    Raises:
        FileNotFoundError: If nothing is there.
        ValueError: If it holds no images.
        ImportError: If a package is missing that reads it.
    """
    if is_hugging_face(images):
        return _Dataset(images, size, column)
    text = str(images) if not is_sequence(images) else ''
    if text.startswith('datasets://'):
        return _Dataset(_hub_dataset(text), size, column)
    if text and (Path(text).expanduser() / 'dataset_info.json').is_file():
        return _Dataset(_saved_dataset(text), size, column)
    given = [
        str(check_path('images', one)) for one in (images if is_sequence(images) else [images])
    ]
    files = [file for one in given for file in _expanded(one)]
    kinds = {path_kind(file) for file in files}
    if kinds == {'parquet'}:
        return _Parquets(files, column)
    if column is not None:
        raise ValueError(f'column is of parquet files and data sets; images is {shorten(images)}')
    if kinds == {'tar'}:
        return _Tars(files)
    if kinds == {'zip'}:
        return _Zips(files)
    if not kinds <= {'folder', 'image', 'list'}:
        raise ValueError(
            f'images must be of one kind, such as folders or tar shards; got {sorted(kinds)} in '
            f'{shorten(images)}'
        )
    return _Listed(list(_refs_of_files(files)), size, 'folder')


def _refs_of_files(files: Sequence[str]) -> Iterator[ImageRef]:
    """The images of folders, image files and lists; names tell several folders apart."""
    several = len(files) > 1
    for number, file in enumerate(files):
        kind = path_kind(file)
        if kind == 'image':
            yield ImageRef(file, file)
        elif kind == 'list':
            yield from _listed(file)
        elif '://' in file:
            yield from _remote_folder(file)
        else:
            prefix = f'{number}/' if several else ''
            folder = ImageFolder(file)
            for path in folder.paths:
                yield ImageRef(prefix + path.relative_to(folder.folder).as_posix(), str(path))


def _listed(file: str) -> Iterator[ImageRef]:
    """The images whose paths are the lines of a text file.

    The first line tells what all are: paths from the folder of the file or from the working
    directory; alone, or with a label behind them.

    Raises:
        ValueError: If it is not such a list.
    """
    try:
        lines = Path(file).read_text(encoding='utf-8').splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f'{file!r} is not a text file of paths ({error})') from error
    lines = [line.strip() for line in lines if line.strip()]
    if not lines:
        raise ValueError(f'{file!r} lists no images: it is empty')
    folders = [Path(file).parent, Path()]
    for is_labeled in (False, True):
        cut = [line.rsplit(maxsplit=1)[0] for line in lines] if is_labeled else lines
        for folder in folders:
            if (folder / cut[0]).is_file():
                for name in cut:
                    yield ImageRef(name, str(folder / name))
                return
    raise ValueError(
        f'{file!r} must have the path of an image on each line, from its own folder or from '
        f'{str(Path.cwd())!r}; there is no file {lines[0]!r}. A list of names without folder and '
        f'suffix is read by the dataset that it is of: give the config of that dataset'
    )


def local_folders(images: Any) -> list[Path]:
    """The folders of this machine that are searched for images."""
    given = images if is_sequence(images) else [images]
    if not all(isinstance(one, (str, Path)) for one in given):
        return []
    paths = [
        Path(_local_path(str(one))).expanduser()
        for one in given
        if '://' not in _local_path(str(one))
    ]
    return [path for path in paths if path.is_dir()]


def _local_path(text: str) -> str:
    """A path without the scheme ``file://``."""
    return text.removeprefix('file://') if text.startswith('file://') else text


def _expanded(text: str) -> list[str]:
    """All files that a path with ``*`` or ``{000..099}`` stands for."""
    text = _local_path(text)
    several = [text]
    if '{' in text and not os.path.exists(text):
        try:
            from braceexpand import braceexpand
        except ImportError as error:
            raise ImportError(f'{text!r} {_INSTALL.format("webdataset")}') from error
        several = list(braceexpand(text))
    found: list[str] = []
    for one in several:
        if '://' in one:
            found += _remote_glob(one) if '*' in one else [one]
            continue
        path = Path(one).expanduser()
        if has_pattern(one) and not path.exists():
            matches = Path(path.anchor or '.').glob(str(path.relative_to(path.anchor)))
            found += sorted(str(file) for file in matches if _is_meant(file, path.suffix))
        else:
            found.append(str(path))
    missing = [one for one in found if '://' not in one and not os.path.exists(one)]
    if missing or not found:
        raise FileNotFoundError(
            f'there are no images at {missing[0] if missing else text!r} (from '
            f'{str(Path.cwd())!r}): give {IMAGE_KINDS}'
        )
    return found


def _is_meant(file: Path, suffix: str) -> bool:
    """Whether what a pattern matches can hold images; notes and hidden files are left out."""
    if file.name.startswith('.'):
        return False
    kind = 'folder' if file.is_dir() else KINDS_OF_SUFFIX.get(file.suffix.lower(), '')
    return bool(kind) and (kind != 'list' or suffix.lower() == file.suffix.lower())


def _file_system(address: str) -> tuple[Any, str]:
    """What fsspec reads an address with, and the path in it.

    Raises:
        ImportError: If the package for its scheme is missing; fsspec's message names it.
        ValueError: If fsspec does not know the scheme.
    """
    try:
        from fsspec.core import url_to_fs
    except ImportError as error:
        raise ImportError(f'{address!r} {_INSTALL.format("fsspec")}') from error
    return url_to_fs(address)


def _remote_glob(address: str) -> list[str]:
    system, path = _file_system(address)
    return [system.unstrip_protocol(found) for found in sorted(system.glob(path))]


def _remote_folder(address: str) -> list[ImageRef]:
    system, path = _file_system(address)
    found = sorted(one for one in system.find(path) if one.lower().endswith(IMAGE_SUFFIXES))
    if not found:
        raise ValueError(
            f'{address!r} holds no images ({", ".join(IMAGE_SUFFIXES)}): at least one is needed'
        )
    start = len(path.rstrip('/')) + 1
    return [ImageRef(one[start:], system.unstrip_protocol(one)) for one in found]


def _stamp_of(address: str) -> str | None:
    """What a store says of a file's content, such as its ETag; None where it says nothing."""
    system, path = _file_system(address)
    facts = system.info(path)
    told = [str(facts[name]) for name in _STAMPS if facts.get(name) is not None]
    return _hash([facts.get('size'), *told]) if told else None


@contextmanager
def _local(file: str) -> Iterator[str]:
    """A file of this machine with the content of another one, until the block ends."""
    if '://' not in file:
        yield file
        return
    system, path = _file_system(file)
    with tempfile.TemporaryDirectory(prefix='mmaselect-') as folder:
        copy = str(Path(folder) / 'shard')
        system.get_file(path, copy)
        yield copy


def _saved_dataset(folder: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ImportError(f'a saved data set {_INSTALL.format("datasets")}') from error
    return datasets.load_from_disk(str(Path(folder).expanduser()))


def _hub_dataset(address: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ImportError(f'{address!r} {_INSTALL.format("datasets")}') from error
    name, _, split = address.removeprefix('datasets://').rpartition('/')
    if not name:
        raise ValueError(
            f'{address!r} must be datasets://NAME/SPLIT, such as datasets://cifar10/train'
        )
    return datasets.load_dataset(name, split=split)


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:32]


class UnitImages(ImageSource):
    """Images of units by index: as a calibration set asks for them.

    Args:
        units: The images.

    Raises:
        ValueError: If there is no image, or if the images would have to be fetched from elsewhere.
    """

    def __init__(self, units: ImageUnits) -> None:
        if isinstance(units, _Archives) and any('://' in file for file in units.files):
            raise ValueError(
                f'{units.files[0]!r} is an archive in a remote store, all of which would be '
                f'fetched to choose images from: copy one to this machine'
            )
        self.units = units
        self._opened: dict[int, list[ImageRef]] = {}
        counts = [units.count(number) for number in range(len(units))]
        self._starts = [0, *accumulate(counts)]
        if not len(self):
            raise ValueError(
                f'there are no images in {shorten(units.listing())} '
                f'({", ".join(IMAGE_SUFFIXES)}): at least one is needed'
            )

    def __len__(self) -> int:
        return self._starts[-1]

    def ref(self, index: int) -> ImageRef:
        """Where an image is."""
        unit = bisect_right(self._starts, index) - 1
        if unit not in self._opened:
            if self.units.holds_bytes:
                self._opened.clear()
            with self.units.open(unit) as refs:
                self._opened[unit] = refs
        return self._opened[unit][index - self._starts[unit]]

    def load(self, index: int) -> np.ndarray:
        ref = self.ref(index)
        return load_rgb(ref.path, lambda _: ref.read())

    def name(self, index: int) -> str:
        return self.ref(index).path
