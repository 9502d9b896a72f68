# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""GGUF files: weights in blocks of a few bits, which stay so in memory."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import GGUFQuantizationConfig
from torch import Tensor

from mmaselect.install import install_hint


class GGUFTensors(Mapping[str, Tensor]):
    """The tensors of a GGUF file by name, read when they are asked for.

    Args:
        file: The file.
        name: What the user wrote as ``pretrained``.

    Raises:
        ImportError: If ``gguf`` is not installed.
        ValueError: If the file is damaged, or none of GGUF.
    """

    def __init__(self, file: Path, name: str) -> None:
        if importlib.util.find_spec('gguf') is None:
            raise ImportError(
                f'pretrained={name!r}: GGUF files are read with gguf, which is not installed: '
                f'`pip install gguf`, or all that checkpoints need by '
                f'{install_hint("checkpoints")}'
            )
        from gguf import GGUFReader

        try:
            self._found = {tensor.name: tensor for tensor in GGUFReader(file).tensors}
        except Exception as error:  # it meets whatever garbage makes it meet
            raise ValueError(
                f'pretrained={name!r} is truncated or damaged ({type(error).__name__}: {error}; '
                f'{file.stat().st_size} bytes). Download or copy it again'
            ) from error
        self.where = f'pretrained={name!r}'

    def __len__(self) -> int:
        return len(self._found)

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __getitem__(self, name: str) -> Tensor:
        from diffusers.quantizers.gguf.utils import SUPPORTED_GGUF_QUANT_TYPES, GGUFParameter
        from gguf import GGMLQuantizationType

        tensor = self._found[name]
        kind = tensor.tensor_type
        values = torch.from_numpy(tensor.data.copy())
        if kind in (GGMLQuantizationType.F32, GGMLQuantizationType.F16):
            return values
        if kind not in SUPPORTED_GGUF_QUANT_TYPES:
            known = ', '.join(sorted(kind.name for kind in SUPPORTED_GGUF_QUANT_TYPES))
            raise ValueError(
                f'{self.where}: {name} is quantized as {kind.name}, which diffusers does not read; '
                f'it reads {known}'
            )
        return GGUFParameter(values, quant_type=kind)

    @staticmethod
    def quantization(options: Mapping[str, Any]) -> GGUFQuantizationConfig:
        """The config that makes diffusers compute in the wanted precision."""
        return GGUFQuantizationConfig(compute_dtype=options['torch_dtype'])
