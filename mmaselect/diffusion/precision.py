# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""``dtype='auto'``: the precision that a model was published in, where the hardware has it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from mmaselect.diffusion.loading import PipelineSource
from mmaselect.diffusion.parts import Part
from mmaselect.untrusted import load_tensors

_NAME = 'diffusion_pytorch_model'
_NAMES = ('.safetensors', '.safetensors.index.json', '.bin', '.bin.index.json')
_SAFETENSORS_DTYPES = {'F32': torch.float32, 'F16': torch.float16, 'BF16': torch.bfloat16}


def auto_dtype(source: PipelineSource, accelerated: bool | None = None) -> torch.dtype:
    """The precision that a model is best read in on this machine.

    On an accelerator, that of the published weights; weights of 8 bits and fewer are computed with
    in bf16. On a CPU, bf16 if it has units for it and the weights are published so, and fp32
    otherwise: without them, bf16 is several times slower there.

    Args:
        source: The model.
        accelerated: Whether it will run on an accelerator; whether there is one, if None.
    """
    if accelerated is None:
        accelerated = torch.accelerator.is_available()
    if not accelerated and not cpu_has_bf16():
        return torch.float32
    published = published_dtype(source)
    if not accelerated and published != torch.bfloat16:
        return torch.float32
    return published


def computed_in(load_kwargs: Mapping[str, Any] | None) -> torch.dtype | None:
    """The precision that a quantization config computes in, where it says so (that of GGUF)."""
    config = (load_kwargs or {}).get('quantization_config')
    found = getattr(config, 'compute_dtype', None)
    return found if isinstance(found, torch.dtype) else None


def cpu_has_bf16() -> bool:
    """Whether the processor multiplies in bf16 (AVX512-BF16 or AMX)."""
    checks = ('_is_avx512_bf16_supported', '_is_amx_tile_supported')
    return any(getattr(torch.cpu, name, bool)() for name in checks)


def published_dtype(source: PipelineSource) -> torch.dtype:
    """The precision of most of a transformer's weights, as they are on disk.

    Raises:
        FileNotFoundError: If there are no weights.
    """
    if source.file is not None:
        return _most(source.file.tensors.values())
    file = _weights(source.part('transformer'))
    if file.suffix == '.safetensors':
        sizes: Counter[str] = Counter()
        with safe_open(file, framework='pt') as weights:
            for name in weights.keys():  # noqa: SIM118
                part = weights.get_slice(name)
                sizes[part.get_dtype()] += torch.Size(part.get_shape()).numel()
        return _SAFETENSORS_DTYPES.get(sizes.most_common(1)[0][0], torch.bfloat16)
    return _most(load_tensors(file, 'meta').values())


def _most(tensors: Iterable[Tensor]) -> torch.dtype:
    sizes: Counter[torch.dtype] = Counter()
    for tensor in tensors:
        sizes[tensor.dtype] += tensor.numel()
    found = sizes.most_common(1)[0][0]
    return found if found in _SAFETENSORS_DTYPES.values() else torch.bfloat16


def _weights(part: Part) -> Path:
    """A file of a transformer's weights: the first shard, if there are several."""
    variant = part.hub_kwargs.get('variant')
    for middle in [f'.{variant}', ''] if variant else ['']:
        for ending in _NAMES:
            # In the name of an index, the variant stands before the last word.
            name = f'{_NAME}{middle}{ending}'
            if middle and ending.endswith('.json'):
                name = f'{_NAME}{ending.removesuffix(".json")}{middle}.json'
            found = _file(part, name)
            if found is not None and found.suffix == '.json':
                shards = json.loads(found.read_text(encoding='utf-8'))['weight_map'].values()
                found = _file(part, min(shards))
            if found is not None:
                return found
    raise FileNotFoundError(
        f"{part.place()}: dtype='auto' looks at the weights, and there is no file "
        f'{_NAME}.safetensors or .bin. Set dtype to fp32, fp16 or bf16'
    )


def _file(part: Part, name: str) -> Path | None:
    """A file of a part; one on the hub is downloaded, as loading the model would do it."""
    part.fetch()
    found = part.folder / name
    return found if found.is_file() else None
