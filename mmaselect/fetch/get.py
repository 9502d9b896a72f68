# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""A data set on disk: whole, in the layout of its config and counted, or not there at all."""

from __future__ import annotations

import shutil
from pathlib import Path

from filelock import FileLock, Timeout

from mmaselect.fetch.catalog import Archive, DataSet
from mmaselect.fetch.download import download, verify
from mmaselect.fetch.unpack import unpack

#: Below the root: what was downloaded, until the data set is there.
ARCHIVES = '.archives'


def get_data(
    data: DataSet,
    root: str | Path = 'data',
    archives: str | Path | None = None,
    keep_archives: bool = False,
    progress: bool = True,
) -> Path:
    """Download, check, unpack, arrange and count a data set.

    A call that was stopped resumes: whole archives are not downloaded twice, and of one that is
    not whole the rest is. The data set's folder appears at the end, in one step.

    Args:
        data: The data set.
        root: The folder that configs call ``data``.
        archives: Folder of archives that are there already, such as those that a form gives; below
            ``root`` if None.
        keep_archives: Whether archives that were downloaded stay.
        progress: Draw progress bars.

    Returns:
        The data set's folder.

    Raises:
        FileExistsError: If the folder is there and is not complete.
        FileNotFoundError: If an archive must be got by hand; the message says how.
        ValueError: If an archive is damaged, is another file, or holds other counts than expected.
        ConnectionError: If a download fails.
    """
    root = Path(root).expanduser()
    target = root / data.folder
    if target.exists():
        wrong = differences(data, check_data(data, root))
        if wrong:
            raise FileExistsError(
                f'{target} is there and is not complete: {wrong}. Move it away, then the same '
                f'command makes it anew'
            )
        return target
    given = archives is not None
    folder = Path(archives).expanduser() if archives is not None else root / ARCHIVES
    if given and not folder.is_dir():
        raise FileNotFoundError(f'there is no folder of archives {str(folder)!r}')
    root.mkdir(parents=True, exist_ok=True)
    staging = root / f'.{data.name}.unpacking'
    try:
        with FileLock(root / f'.{data.name}.lock', timeout=0):
            files = [_archive(data, archive, folder, progress) for archive in data.archives]
            # What a killed process left.
            shutil.rmtree(staging, ignore_errors=True)
            try:
                _unpack(data, files, staging)
                made = staging / data.top
                try:
                    wrong = differences(data, data.count(made))
                except (OSError, KeyError, ValueError) as error:
                    wrong = str(error)
                if wrong:
                    raise ValueError(
                        f'the archives of {data.title} do not hold what they should: {wrong}'
                    )
                target.parent.mkdir(parents=True, exist_ok=True)
                made.rename(target)
            finally:
                shutil.rmtree(staging, ignore_errors=True)
            if not given and not keep_archives:
                for file in files:
                    file.unlink()
    except Timeout as error:
        raise RuntimeError(f'another process is getting {data.title} into {root}') from error
    return target


def check_data(data: DataSet, root: str | Path = 'data') -> dict[str, int]:
    """Count what a data set's folder holds.

    Args:
        data: The data set.
        root: The folder that configs call ``data``.

    Returns:
        Numbers by what was counted, as ``data.expected`` has them.

    Raises:
        FileNotFoundError: If the folder, or a list in it, is not there.
    """
    folder = Path(root).expanduser() / data.folder
    if not folder.is_dir():
        raise FileNotFoundError(
            f'there is no {data.title} at {folder}: `mmaselect data get {data.name}` gets it'
        )
    return data.count(folder)


def differences(data: DataSet, found: dict[str, int]) -> str:
    """What differs from the expected counts, in words; empty if nothing does.

    Example:
        >>> from mmaselect.fetch import find_data_set
        >>> differences(
        ...     find_data_set('cub'), {'training images': 5990, 'test images': 5794, 'classes': 200}
        ... )
        '5990 of 5994 training images'
    """
    return ', '.join(
        f'{found.get(what, 0)} of {number} {what}'
        for what, number in data.expected.items()
        if found.get(what, 0) != number
    )


def _archive(data: DataSet, archive: Archive, folder: Path, progress: bool) -> Path:
    """An archive that is there and checked: as it was found, or downloaded."""
    path = folder / archive.name
    if path.is_file():
        verify(archive, path)
        return path
    if archive.url is None:
        names = ', '.join(archive.name for archive in data.archives if archive.url is None)
        raise FileNotFoundError(
            f'{data.title} cannot be downloaded by a program. {data.by_hand} Page: {data.page}. '
            f'Put {names} into {folder.resolve()} and give the same command again'
        )
    try:
        return download(archive, folder, progress)
    except ConnectionError as error:
        raise ConnectionError(
            f'{error}. Its page is {data.page}; a copy that you got there is used if it lies in '
            f'{folder.resolve()}'
        ) from error


def _unpack(data: DataSet, files: list[Path], staging: Path) -> None:
    """Unpack all archives into a folder, and arrange what is in it."""
    for archive, file in zip(data.archives, files, strict=True):
        inside = staging / archive.into
        if archive.unpack:
            unpack(file, inside)
        else:
            inside.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, inside / archive.name)
    if data.arrange is not None:
        data.arrange(staging)
    if not (staging / data.top).is_dir():
        raise ValueError(
            f'the archives of {data.title} hold no folder {data.top!r}: another file has its name'
        )
