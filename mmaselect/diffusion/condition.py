# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Prompts are embedded once: the embeddings stay in a small file, the text encoders go.

A text encoder can be larger than the transformer that it conditions, and all that feature
extraction ever asks of it is the embedding of one prompt, most often the empty one.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mmaselect.diffusion.loading import PipelineSource
from mmaselect.files import acquired, cache_root, check_regular, written_aside

logger = logging.getLogger(__name__)

_SAMPLES, _SAMPLE_BYTES = 16, 1 << 16


def cache_folder() -> Path:
    """Folder of the embeddings, in :func:`~mmaselect.files.cache_root`."""
    return cache_root() / 'conditions'


def _fingerprint(file: Path) -> list[Any]:
    """Size, time and sampled content of a file; gigabytes are not read at every start."""
    stat = file.stat()
    digest = hashlib.sha256()
    with file.open('rb') as stream:
        step = max(stat.st_size // _SAMPLES, _SAMPLE_BYTES)
        for offset in range(0, stat.st_size, step):
            stream.seek(offset)
            digest.update(stream.read(_SAMPLE_BYTES))
    return [file.name, stat.st_size, stat.st_mtime_ns, digest.hexdigest()]


def encoder_identity(source: PipelineSource, parts: Sequence[str]) -> dict[str, Any]:
    """What tells the text encoders of one pipeline from those of another.

    Args:
        source: The pipeline.
        parts: Subfolders of its text encoders and tokenizers.

    Returns:
        dict: For a hub id, the id with its revision, variant and, where it is known, the commit;
        for a folder, a fingerprint of every file in ``parts``, so that it may be moved.
    """
    if source.is_local:
        return {
            part: [_fingerprint(f) for f in sorted((Path(source.path) / part).glob('*'))]
            for part in parts
        }
    revision = source.hub_kwargs.get('revision')
    index = try_to_load_from_cache(
        source.path,
        'model_index.json',
        cache_dir=source.hub_kwargs.get('cache_dir'),
        revision=revision,
    )
    return {
        'hub_id': source.path,
        'revision': revision,
        'variant': source.hub_kwargs.get('variant'),
        'commit': Path(index).parent.name if isinstance(index, str) else None,
        'parts': list(parts),
    }


def model_identity(name: str, hub_kwargs: Mapping[str, Any]) -> Any:
    """The same of one text encoder that lies elsewhere.

    Args:
        name: Its hub id or folder.
        hub_kwargs: How it is found on the hub.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return [_fingerprint(file) for file in sorted(folder.glob('*')) if file.is_file()]
    config = try_to_load_from_cache(name, 'config.json', cache_dir=hub_kwargs.get('cache_dir'))
    commit = Path(config).parent.name if isinstance(config, str) else None
    return {'hub_id': name, 'commit': commit}


def _read(file: Path, key: str) -> dict[str, Tensor] | None:
    if not file.exists():
        return None
    try:
        with safe_open(check_regular(file), framework='pt') as stored:
            if (stored.metadata() or {}).get('key') == key:
                return {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        reason = 'it belongs to another prompt'
    except (SafetensorError, OSError) as error:
        reason = str(error)
    logger.warning('%s cannot be used (%s); the prompt is embedded again', file, reason)
    return None


def _write(file: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    with written_aside(file) as aside:
        save_file({k: v.contiguous() for k, v in tensors.items()}, aside, metadata)


def _use_all_cores() -> int:
    """Use the cores of the processes that wait. Returns the number of threads until now."""
    threads = torch.get_num_threads()
    # torchrun gives each process one thread.
    if int(os.environ.get('LOCAL_WORLD_SIZE') or 1) > 1 and hasattr(os, 'sched_getaffinity'):
        torch.set_num_threads(len(os.sched_getaffinity(0)))
    return threads


def cached_embedding(
    label: str, identity: Mapping[str, Any], embed: Callable[[], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """The embedding of a prompt from its cache file; computed and stored if there is none.

    Several processes that start together compute it once: the others wait for the first.

    Args:
        label: Leads the file's name, for people who look into the folder.
        identity: All that the embedding depends on, in types that JSON knows.
        embed: Computes it.

    Returns:
        dict: Name to tensor, on the CPU.
    """
    description = json.dumps(identity, sort_keys=True)
    key = hashlib.sha256(description.encode()).hexdigest()
    slug = re.sub(r'[^A-Za-z0-9.]+', '-', label).strip('-')[:80]
    file = cache_folder() / f'{slug}-{key[:16]}.safetensors'
    stored = _read(file, key)
    if stored is not None:
        return stored
    try:
        lock = acquired(Path(f'{file}.lock'), 'embeds the prompt')
    except OSError as error:
        logger.warning(
            'the embedded prompt cannot be kept in %s (%s), so the text encoders will be loaded at '
            'every start; set MMASELECT_CACHE to a folder that can be written',
            file.parent,
            error,
        )
        return embed()
    try:
        stored = _read(file, key)
        if stored is None:
            threads = _use_all_cores()
            logger.info(
                '%s: embedding the prompt on the CPU (%d threads); once, it is kept in %s',
                label,
                torch.get_num_threads(),
                file,
            )
            try:
                stored = embed()
            finally:
                torch.set_num_threads(threads)
            _write(file, stored, {'key': key, 'identity': description})
        return stored
    finally:
        lock.release()
