# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""What is wrong with a part of a pipeline, in words that name the file and say what to do."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from safetensors import SafetensorError, safe_open
from torch import nn

from mmaselect.checks import shorten
from mmaselect.untrusted import load_tensors

REPAIR = 'Download or copy that part again, or give another pipeline'
#: Entries of a transformer's config that count something there must be one of.
COUNTS = (
    'attention_head_dim', 'dim', 'hidden_size', 'in_channels', 'num_attention_heads',
    'num_embeds_ada_norm', 'patch_size', 'sample_size',
)  # fmt: skip


class PartConfig(dict[str, Any]):
    """A part's config. Asked for an entry that it lacks, it names the file.

    Args:
        entries: The content of the file.
        where: The file, for messages.
    """

    def __init__(self, entries: Mapping[str, Any], where: str) -> None:
        super().__init__(entries)
        self.where = where

    def __missing__(self, key: str) -> Any:
        raise ValueError(f'{self.where} is incomplete: it has no {key!r}. {REPAIR}')


def check_entries(config: PartConfig, cls: type[nn.Module]) -> None:
    """Check that the entries of a config have the types that their class states.

    Args:
        config: The config.
        cls: The class of diffusers that is built from it.

    Raises:
        ValueError: If one has another type, or a count is below 1.
    """
    try:
        hints = get_type_hints(inspect.unwrap(cls.__init__))
    except NameError:
        hints = {}  # annotated with what is imported for type checkers only
    for name, value in config.items():
        hint = hints.get(name)
        kinds: set[Any] = set(get_args(hint)) if get_origin(hint) in (Union, UnionType) else {hint}
        if value is None or not kinds <= {int, float, bool, str, NoneType}:
            continue
        if float in kinds:
            kinds.add(int)
        if type(value) not in kinds and not (
            int in kinds and isinstance(value, float) and value.is_integer()
        ):
            wanted = ' or '.join(sorted(kind.__name__ for kind in kinds - {NoneType}))
            raise ValueError(
                f'{config.where}: {name!r} must be {wanted}, got {shorten(value)}. {REPAIR}'
            )
    for name in COUNTS:
        value = config.get(name)
        if isinstance(value, (int, float)) and value < 1:
            raise ValueError(
                f'{config.where}: {name!r} must be at least 1, got {value!r}. {REPAIR}'
            )


#: What is said of a file that only stands for another.
LFS_POINTER = (
    'is a git-LFS pointer, which stands for the weights: run `git lfs pull` in that folder, or '
    'download it by `hf download`'
)


def is_lfs_pointer(file: Path) -> bool:
    """Whether a file is what git leaves in place of a large one that was not downloaded."""
    with file.open('rb') as stream:
        return stream.read(40).startswith(b'version https://git-lfs')


def weights_problem(folder: Path) -> str | None:
    """What is wrong with the weight files of a folder; None if nothing is seen."""
    if not folder.is_dir():
        return f'there is no folder {str(folder)!r}'
    files = sorted(
        path
        for path in folder.iterdir()
        if path.name.endswith(('.safetensors', '.bin', '.index.json'))
    )
    if not files:
        return f'{str(folder)!r} holds no weights (*.safetensors)'
    for file in files:
        problem = _file_problem(file)
        if problem:
            return f'{str(file)!r} {problem}'
    return None


def _file_problem(file: Path) -> str | None:
    """What is wrong with one file of weights, or with an index of them."""
    try:
        size = file.stat().st_size
        if file.name.endswith('.index.json'):
            named = json.loads(file.read_text(encoding='utf-8'))['weight_map'].values()
            missing = sorted({name for name in named if not (file.parent / name).is_file()})
            return f'names {missing[0]!r}, which is not there' if missing else None
        if size == 0:
            return 'is empty (0 bytes)'
        if is_lfs_pointer(file):
            return LFS_POINTER
        if file.suffix == '.safetensors':
            with safe_open(file, framework='pt') as opened:
                return None if list(opened.keys()) else 'holds no tensors'
        load_tensors(file, 'meta')
    except (OSError, ValueError, KeyError, AttributeError, TypeError, SafetensorError) as error:
        return f'is truncated or damaged ({error}; {size} bytes)'
    except Exception as error:
        # Unpickling meets whatever garbage makes it meet.
        return f'is truncated or damaged ({type(error).__name__}: {error}; {size} bytes)'
    return None
