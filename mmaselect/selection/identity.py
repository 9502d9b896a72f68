# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""What a selection's result depends on, as text that tells one case from another."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

from mmaselect.diffusion import FrozenDiT
from mmaselect.diffusion.loading import dequantized

#: Packages whose classes are told apart by a version, and not by their source.
_VERSIONED = ('mmaselect', 'torch', 'torchmetrics', 'diffusers', 'abc', 'builtins', 'typing')


def weights_fingerprint(dit: nn.Module) -> str:
    """Hash of name, shape, precision and every byte of every tensor of the frozen model.

    The transformer's built part, the VAE's encoder and the condition. What is hashed are the
    weights in memory, not the files they came from: these are the ones that are read, however they
    were loaded, cast, quantized or edited, and there is no shortcut that a file's date could
    mislead. Tensors are hashed side by side, at about 0.7 GB a second and core.
    """
    tensors = sorted(_named_tensors(dit), key=lambda item: item[0])
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        digests = pool.map(lambda item: _tensor_digest(*item), tensors)
        return hashlib.sha256(''.join(digests).encode()).hexdigest()


def _named_tensors(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """Name, module and attribute of all parameters and buffers."""
    for prefix, module in model.named_modules():
        own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        for name, _ in own:
            yield f'{prefix}.{name}', module, name


def _tensor_digest(name: str, module: nn.Module, attribute: str) -> str:
    tensor = getattr(module, attribute).detach()
    if tensor.is_meta and hasattr(module, '_hf_hook'):
        # accelerate keeps it elsewhere, on disk or in main memory, until it is needed.
        from accelerate.utils import align_module_device

        with align_module_device(module, 'cpu'):
            return _digest(name, getattr(module, attribute).detach())
    return _digest(name, tensor)


def _digest(name: str, tensor: Tensor) -> str:
    digest = hashlib.sha256(f'{name}{tuple(tensor.shape)}{tensor.dtype}'.encode())
    tensor = dequantized(tensor)
    if not tensor.is_meta:
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def model_identity(dit: FrozenDiT, timesteps: Sequence[int], num_tokens: int) -> dict[str, Any]:
    """What tells one frozen model from another, as it is read at some timesteps.

    Args:
        dit: The frozen model.
        timesteps: Where it is read: of the scheduler's config, what counts is the noise there.
        num_tokens: Image tokens of one image, on which the noise of some families depends.
    """
    vae = getattr(dit.codec, 'vae', None)
    levels = [asdict(dit.process.at(step, num_tokens)) for step in timesteps]
    return dict(
        weights=weights_fingerprint(dit),
        transformer=dit.family.transformer_class,
        transformer_config=_without_origin(dit.family.config),
        scheduler=_hash_json(levels),
        vae=type(dit.codec).__name__,
        vae_config=None if vae is None else _without_origin(vae.config),
        dtype=str(dit.dtype),
        blocks=list(dit.blocks),
        features=list(dit.feature_names),
        versions=dict(torch=torch.__version__, diffusers=diffusers.__version__),
    )


def _without_origin(config: Mapping[str, Any]) -> dict[str, Any]:
    """A diffusers config without where it came from, and which version wrote it."""
    return {
        key: value
        for key, value in config.items()
        if not key.startswith('_') or key == '_class_name'
    }


def _hash_json(data: Any) -> str:
    return hashlib.sha256(json.dumps(data, default=str).encode()).hexdigest()


def code_identity(cls: type) -> dict[str, str]:
    """Hashes of the files that define a class and its bases, but for those of known packages.

    The whole file, as a class may call functions beside it; what it imports is not followed.

    Raises:
        LookupError: If there is no source to read.
    """
    found = {}
    for base in cls.__mro__:
        if base.__module__.partition('.')[0] in _VERSIONED:
            continue
        module = sys.modules.get(base.__module__)
        try:
            source = inspect.getsource(
                base if module is None or not hasattr(module, '__file__') else module
            )
        except (OSError, TypeError) as error:
            raise LookupError(
                f'the source of {base.__module__}.{base.__qualname__} cannot be read'
            ) from error
        found[f'{base.__module__}.{base.__qualname__}'] = hashlib.sha256(
            source.encode()
        ).hexdigest()
    return found
