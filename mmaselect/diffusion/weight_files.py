# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Files of weights: opened without running what they hold, and told apart."""

from __future__ import annotations

import argparse
import logging
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mmaselect.checks import shorten
from mmaselect.diffusion.diagnose import LFS_POINTER, PartConfig, is_lfs_pointer
from mmaselect.diffusion.dit_original import OriginalFile, is_of_dit_kind, refuse_others
from mmaselect.diffusion.gguf_file import GGUFTensors
from mmaselect.diffusion.locate import GGUF, SAFETENSORS
from mmaselect.diffusion.scales import ScaledTensors
from mmaselect.diffusion.single_file import SingleFile
from mmaselect.untrusted import load_tensors, what_was_refused

logger = logging.getLogger(__name__)

#: Where training scripts keep the weights in a checkpoint; averaged ones, as published, first.
_INSIDE = ('ema', 'ema_model', 'state_dict', 'model', 'module')
#: What wrappers put before every name.
_WRAPPERS = ('module.', '_orig_mod.')


def open_weights(
    file: Path,
    name: str,
    base_config: Callable[[str], PartConfig] | None,
    original: str | Mapping[str, Any] | None,
) -> OriginalFile | SingleFile:
    """What a file of weights holds.

    Args:
        file: The file.
        name: What the user wrote as ``pretrained``.
        base_config: Reads the config of a part of the ``base`` pipeline; None without one.
        original: See :class:`OriginalFile`.

    Raises:
        ValueError: If it is damaged, could run code, or holds what no class of diffusers fits; the
            message says which.
    """
    if is_lfs_pointer(file):
        raise ValueError(f'pretrained={name!r} {LFS_POINTER}')
    config = None if base_config is None else base_config('transformer')
    if file.suffix.lower() == GGUF:
        if original is not None:
            raise ValueError(f'original={shorten(original)} does not go with a GGUF file')
        return SingleFile(GGUFTensors(file, name), file, name, config)
    tensors, settings = read_tensors(file, name)
    refuse_others(tensors, name)
    if is_of_dit_kind(tensors):
        weights = ScaledTensors(tensors, f'pretrained={name!r}')
        return OriginalFile(weights, settings, file, name, original)
    if original is not None:
        raise ValueError(
            f'pretrained={name!r} has not the names of weights of a DiT, SiT or REPA, as '
            f'original={shorten(original)} says'
        )
    return SingleFile(tensors, file, name, config)


def read_tensors(
    file: Path, name: str, argument: str = 'pretrained'
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a file by name, mapped and not yet read; and its training script's settings.

    Args:
        file: Safetensors, or pickled by ``torch.save``.
        name: What the user wrote.
        argument: The argument, for messages.

    Raises:
        ValueError: If it is damaged, holds objects other than tensors and plain values, or none.
    """
    settings: dict[str, Any] = {}
    try:
        content: Any = load_file(file) if file.suffix.lower() == SAFETENSORS else _unpickle(file)
    except UnpicklingError as error:
        raise ValueError(
            f'{argument}={name!r} is damaged, or holds Python objects that are neither tensors nor '
            f'plain values, and could run code when read ({what_was_refused(error)}). Save its '
            f'state dict alone, with safetensors.torch.save_file, where you trust its maker'
        ) from error
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, SafetensorError) as error:
        raise ValueError(
            f'{argument}={name!r} is truncated or damaged ({error}; {file.stat().st_size} bytes). '
            f'Download or copy it again'
        ) from error
    if isinstance(content, Mapping):
        arguments = content.get('args')
        if isinstance(arguments, argparse.Namespace):
            settings = vars(arguments)
        inside = next((key for key in _INSIDE if _is_state_dict(content.get(key))), None)
        if inside is not None:
            logger.info('%s=%r: its %r weights are read', argument, name, inside)
            content = content[inside]
    if not _is_state_dict(content):
        raise ValueError(f'{argument}={name!r} holds no tensors by name')
    tensors = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    for wrapper in _WRAPPERS:
        if all(key.startswith(wrapper) for key in tensors):
            tensors = {key.removeprefix(wrapper): value for key, value in tensors.items()}
    return tensors, settings


def _unpickle(file: Path) -> Any:
    # A namespace of plain values, which training scripts keep next to the weights, runs nothing.
    return load_tensors(file, mmap=zipfile.is_zipfile(file), allowed=[argparse.Namespace])


def _is_state_dict(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and all(isinstance(key, str) for key in value)
        and any(isinstance(item, Tensor) for item in value.values())
    )
