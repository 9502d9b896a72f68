# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Unpacking an archive that somebody else made, inside one folder and nowhere else."""

from __future__ import annotations

import gzip
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import IO, cast


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a ``.tar``, ``.tar.gz``, ``.tgz`` or ``.zip`` file into a folder.

    Args:
        archive: The file.
        folder: Made if it is not there.

    Raises:
        ValueError: If the archive is damaged or of another kind, or would write outside of the
            folder. What was unpacked by then stays: callers unpack into a folder that they remove.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as file:
                root = folder.resolve()
                for name in file.namelist():
                    # zipfile would change such a name without a word.
                    if not (root / name).resolve().is_relative_to(root) or Path(name).is_absolute():
                        raise ValueError(
                            f'{archive.name} would write outside of its folder: {name!r}'
                        )
                file.extractall(folder)
        elif tarfile.is_tarfile(archive):
            with tarfile.open(archive) as file:
                file.extractall(folder, filter='data')
                # tarfile takes a cut between two members, or inside a header, for the end.
                stream = cast(IO[bytes], file.fileobj)
                stream.seek(file.offset)
                if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                    raise tarfile.ReadError('its end is missing')
                # The checksum of a compressed stream is compared at its very end.
                while stream.read(1 << 20):
                    pass
        else:
            raise ValueError(
                f'{archive.name} is neither a tar nor a zip archive, or its beginning is damaged: '
                f'remove it and get it again'
            )
    except tarfile.FilterError as error:
        raise ValueError(f'{archive.name} would write outside of its folder: {error}') from error
    except (
        EOFError,
        gzip.BadGzipFile,
        tarfile.TarError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise ValueError(
            f'{archive.name} is damaged or cut short ({error}): remove it and get it again'
        ) from error
