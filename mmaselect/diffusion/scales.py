# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Weights of eight bits that a file keeps with their scales: ``weight = stored * scale``.

Diffusers reads such weights and drops the scales. All programs that write them multiply: ComfyUI
(``scale_weight``, ``weight_scale``), compressed-tensors and LTX (``weight_scale``), DeepSeek
(``weight_scale_inv``, the inverse of what the weights were multiplied by).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

#: What stands in place of ``weight`` in the name of a scale.
_SCALES = ('weight_scale', 'weight_scale_inv', 'scale_weight', 'weight.scale', 'scale')
#: Scales of activations, which weights of full precision do not need.
_ACTIVATIONS = ('input_scale', 'scale_input', 'weight.input_scale')
#: ComfyUI's description of one layer, and its mark of a whole file.
_DESCRIPTION, _MARK = 'comfy_quant', 'scaled_fp8'
#: Formats of ComfyUI that are a weight and a scale, and the entries that change no weight.
_FORMATS = ('float8_e4m3fn', 'float8_e5m2', 'int8_tensorwise')
_HARMLESS = ('format', 'full_precision_matrix_mult')

_EIGHT_BITS = (
    torch.int8,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2fnuz,
)
#: No layer of a transformer has weights as large; a scale that was inverted makes them so.
_LARGEST = 1000.0


class ScaledTensors(Mapping[str, Tensor]):
    """Tensors by name, those of eight bits multiplied by their scales; the scales are hidden.

    A weight is multiplied when it is asked for, in float32.

    Args:
        stored: Tensors by their names in the file.
        where: What messages call the file.

    Raises:
        ValueError: If a scale is for blocks of a weight, has an impossible value, or a layer is
            stored in another format; or a weight is of whole numbers and has no scale.
    """

    def __init__(self, stored: Mapping[str, Tensor], where: str) -> None:
        self._stored = stored
        self._where = where
        self._scales: dict[str, str] = {}
        self._hidden: set[str] = set()
        for name in stored:
            if name == _MARK or name.endswith(f'.{_MARK}'):
                self._hidden.add(name)
            elif name.endswith('.weight') and stored[name].dtype in _EIGHT_BITS:
                self._find(name)

    @property
    def are_scaled(self) -> bool:
        """Whether any weight has a scale."""
        return bool(self._scales)

    def is_scaled(self, name: str) -> bool:
        """Whether a weight has a scale."""
        return name in self._scales

    def _find(self, name: str) -> None:
        """Note what belongs to a weight of eight bits."""
        layer = name.removesuffix('weight')
        found = [f'{layer}{end}' for end in _SCALES if f'{layer}{end}' in self._stored]
        if len(found) > 1:
            raise ValueError(f'{self._where}: {name} has more than one scale: {", ".join(found)}')
        if found:
            self._scales[name] = found[0]
            self._check_scale(name, found[0])
        elif self._stored[name].dtype == torch.int8:
            raise ValueError(
                f'{self._where}: {name} holds whole numbers (int8) and has no scale: a scale would '
                f'be named {layer}{_SCALES[0]}. Give the file in bf16 or fp16'
            )
        self._hidden.update(found)
        self._hidden.update(f'{layer}{end}' for end in _ACTIVATIONS)
        description = f'{layer}{_DESCRIPTION}'
        if description in self._stored:
            self._check_description(description)
            self._hidden.add(description)

    def _check_scale(self, name: str, scale_name: str) -> None:
        weight, scale = self._stored[name], self._stored[scale_name].float()
        if _aligned(scale, weight) is None:
            raise ValueError(
                f'{self._where}: {scale_name} has the shape {tuple(scale.shape)}, and {name} '
                f'{tuple(weight.shape)}: scales of a whole weight or of its rows are read, others '
                f'are not. Give the file in bf16, fp16 or GGUF'
            )
        if not scale.isfinite().all() or (scale == 0).any():
            raise ValueError(f'{self._where}: {scale_name} holds zeros or is not finite')

    def _check_description(self, name: str) -> None:
        try:
            entries = json.loads(bytes(self._stored[name].to(torch.uint8).tolist()))
            kind = entries['format']
            known = kind in _FORMATS and not [key for key in entries if key not in _HARMLESS]
        except (ValueError, KeyError, TypeError):
            entries, known = 'something else', False
        if not known:
            raise ValueError(
                f'{self._where}: {name} describes a layout that is not read ({entries}): only '
                f'{", ".join(_FORMATS)} with one scale are. Give the file in bf16, fp16 or GGUF'
            )

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __iter__(self) -> Iterator[str]:
        return (name for name in self._stored if name not in self._hidden)

    def __getitem__(self, name: str) -> Tensor:
        if name in self._hidden:
            raise KeyError(name)
        weight = self._stored[name]
        if name not in self._scales:
            return weight
        scale = _aligned(self._stored[self._scales[name]].float(), weight)
        assert scale is not None  # checked when the file was opened
        weight = weight.float() * scale
        if weight.abs().max() > _LARGEST:
            raise ValueError(
                f'{self._where}: with {self._scales[name]} the weights of {name} reach '
                f'{weight.abs().max():.3g}, which no model has: the scale seems to be one that '
                f'weights were multiplied by when they were stored. Give the file in bf16, fp16 or '
                f'GGUF'
            )
        return weight


def _aligned(scale: Tensor, weight: Tensor) -> Tensor | None:
    """A scale in a shape that multiplies its weight; None if it is of another kind."""
    if scale.numel() == 1:
        return scale.reshape(())
    # One scale for each row: (out,), or (out, 1) and so on.
    rows = (len(weight), *(1,) * (weight.ndim - 1))
    return scale.reshape(rows) if tuple(scale.shape) in {rows[:1], rows} else None
