# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Downloads that resume: a file is there whole and checked, or its beginning is kept.

The downloaders of PyTorch, torchvision and pooch begin anew after a lost connection; these files
have up to 2.7 GB. So this is urllib with a ``Range``.
"""

from __future__ import annotations

import hashlib
import shutil
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import IO, TYPE_CHECKING

from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from mmaselect.files import write_atomically

if TYPE_CHECKING:
    from mmaselect.fetch.catalog import Archive

CHUNK = 1 << 20
#: Connections for one file, each of which begins where the last one ended.
ATTEMPTS = 3
TIMEOUT = 60.0


def download(archive: Archive, folder: Path, progress: bool = True) -> Path:
    """Download a file, or resume an earlier download.

    Args:
        archive: What to get. It has an address.
        folder: Where it goes, under its name; its beginning is ``NAME.part`` until it is whole.
        progress: Draw a progress bar.

    Returns:
        The file, whose checksum is right where one is known.

    Raises:
        ConnectionError: If the server cannot be reached, refuses, or ends too early.
        ValueError: If what came is not the file: a web page, or other bytes. It is removed then.
        OSError: If the disk has no room for it.
    """
    assert archive.url is not None
    folder.mkdir(parents=True, exist_ok=True)
    target, part = folder / archive.name, folder / f'{archive.name}.part'
    with _bar(progress) as bar:
        task = bar.add_task(archive.name, total=archive.size)
        for attempt in range(ATTEMPTS):
            try:
                _receive(archive, part, bar, task)
                break
            except (HTTPException, urllib.error.URLError, ConnectionError, TimeoutError) as error:
                if isinstance(error, urllib.error.HTTPError) and error.code < 500:
                    raise ConnectionError(
                        f'{archive.url}: the server answers {error.code} {error.reason}'
                    ) from error
                if attempt + 1 == ATTEMPTS:
                    kept = part.stat().st_size if part.is_file() else 0
                    raise ConnectionError(
                        f'{archive.url}: {error}. {kept} bytes are kept: the same command resumes'
                    ) from error
    try:
        verify(archive, part)
    except ValueError:
        part.unlink()
        _tag_file(part).unlink(missing_ok=True)
        raise
    part.replace(target)
    _tag_file(part).unlink(missing_ok=True)
    return target


def verify(archive: Archive, path: Path) -> None:
    """Compare a file with the size and the checksum that are known of it, if any are.

    Raises:
        ValueError: If it is another file.
    """
    if archive.checksum is None:
        return
    size = path.stat().st_size
    if archive.size is not None and size != archive.size:
        raise ValueError(
            f'{path.name} has {size} bytes, and the published file has {archive.size}: it is cut '
            f'short, or another file. Get it again'
        )
    kind, _, expected = archive.checksum.partition(':')
    with open(path, 'rb') as file:
        found = hashlib.file_digest(file, kind).hexdigest()
    if found != expected:
        raise ValueError(
            f'{path.name} is not the published file: its {kind} is {found}, and {expected} was '
            f'expected. Get it again; if it is the same then, its publisher has changed it'
        )


def _receive(archive: Archive, part: Path, bar: Progress, task: TaskID) -> None:
    """One connection: append to the beginning that is there, or start anew."""
    assert archive.url is not None
    request = urllib.request.Request(archive.url, headers={'User-Agent': 'mmaselect'})
    tag = _tag_file(part)
    have = part.stat().st_size if part.is_file() else 0
    is_http = archive.url.startswith('http')
    if is_http and have and tag.is_file():
        # Without the tag, the rest might be that of another version of the file.
        request.add_header('Range', f'bytes={have}-')
        request.add_header('If-Range', tag.read_text(encoding='utf-8'))
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing is left, or the file has become shorter
            if archive.size == have:
                return
            part.unlink()
        raise
    with response:
        resumes = is_http and response.status == 206
        have = have if resumes else 0
        if 'text/html' in response.headers.get('Content-Type', ''):
            raise ValueError(
                f'{archive.url} gives a web page and not {archive.name}: the file has moved, or '
                f'the page wants something first'
            )
        length = response.headers.get('Content-Length')
        total = have + int(length) if length else archive.size
        room = shutil.disk_usage(part.parent).free
        if length and int(length) > room:
            raise OSError(
                f'{archive.name} needs {int(length) / 2**30:.1f} GiB more, and {part.parent} has '
                f'{room / 2**30:.1f} GiB left'
            )
        validator = response.headers.get('ETag') or response.headers.get('Last-Modified')
        # A weak tag cannot say that bytes are the same.
        if is_http and validator and not validator.startswith('W/'):
            write_atomically(tag, validator)
        else:
            tag.unlink(missing_ok=True)
        bar.update(task, total=total, completed=have)
        with open(part, 'ab' if resumes else 'wb') as file:
            have += _copy(response, file, bar, task)
    if total is not None and have < total and length:
        raise ConnectionError(f'the connection ended after {have} of {total} bytes')


def _copy(source: IO[bytes], file: IO[bytes], bar: Progress, task: TaskID) -> int:
    count = 0
    while chunk := source.read(CHUNK):
        file.write(chunk)
        count += len(chunk)
        bar.advance(task, len(chunk))
    return count


def _tag_file(part: Path) -> Path:
    """What the server called the version that a beginning is of."""
    return part.with_name(f'{part.name}.tag')


def _bar(progress: bool) -> Progress:
    from rich.console import Console

    return Progress(
        TextColumn('{task.description}'),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not progress,
    )
