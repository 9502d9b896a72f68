# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""What a pass through the transformer costs, by where it ends: FLOPs, and weights on the way."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from mmaselect.diffusion.families import Family, Tap
from mmaselect.diffusion.frozen_dit import FrozenDiT, TapKey


def _attention(
    query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any
) -> int:
    """FLOPs of an attention product, from the shapes of its operands."""
    return sdpa_flop_count(query, key, value)


#: That on the CPU, which FlopCounterMode does not count by itself.
_ON_THE_CPU = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention}


@dataclass(frozen=True)
class PassCost:
    """What a pass of one image costs.

    Attributes:
        flops: (block, feature) to the FLOPs of a pass that ends there, two for each multiply-add.
        weights: Bytes of the transformer's weights that are built.
        default: What the family reads where nothing is searched, if it is among the candidates:
            the query of the middle block, say; of given blocks, the deepest.
        default_weights: Bytes of the weights that this takes; None without a default.
    """

    flops: Mapping[TapKey, int]
    weights: int
    default: TapKey | None = None
    default_weights: int | None = None

    def to(self, keys: Iterable[TapKey]) -> int:
        """FLOPs of a pass that ends at the deepest of some (block, feature)."""
        return max(self.flops[key] for key in keys)

    @property
    def whole(self) -> int:
        """FLOPs of a pass to the deepest candidate."""
        return max(self.flops.values())

    @classmethod
    def of(cls, dit: FrozenDiT, image_size: int | tuple[int, int]) -> PassCost:
        """Count a pass, by running one on an empty latent.

        Args:
            dit: The model; all of its (block, feature) are candidates.
            image_size: Side of the images, or (height, width), in pixels.
        """
        family = dit.family
        block = family.default_block
        searches_blocks = dit.search is None or dit.search.blocks
        default = (block if searches_blocks else max(dit.blocks), dit.feature_names[0])
        weights = _bytes(dit.transformer)
        flops = count_flops(dit, image_size)
        if default not in flops:
            return cls(flops, weights)
        behind = range(block + 1, max(dit.blocks) + 1) if searches_blocks else ()
        dropped = sum(_bytes(family.block(dit.transformer, index)) for index in behind)
        return cls(flops, weights, default, weights - dropped)


def count_flops(dit: FrozenDiT, image_size: int | tuple[int, int]) -> dict[TapKey, int]:
    """FLOPs of one image's pass up to where each (block, feature) comes out.

    One pass on an empty latent, under PyTorch's ``FlopCounterMode``, which counts products,
    convolutions and attention; kernels of libraries that quantize are unknown to it.

    Args:
        dit: The model.
        image_size: Side of the images, or (height, width), in pixels.
    """
    counter = FlopCounterMode(display=False, custom_mapping=_ON_THE_CPU)
    found: dict[TapKey, int] = {}
    reader = copy.copy(dit)  # a view of the same weights, with a family that counts
    reader.family = _counting(dit.family, counter, found)
    sides = (image_size,) * 2 if isinstance(image_size, int) else image_size
    shape = [math.ceil(side / dit.stride) * dit.family.patch_size for side in sides]
    latent = torch.zeros(1, dit.family.in_channels, *shape, device=dit.device)
    with counter:
        FrozenDiT.features(reader, latent, 0, latent)  # even where the instance has another one
    return found


def _counting(family: Family, counter: FlopCounterMode, found: dict[TapKey, int]) -> Family:
    """A family that notes what was counted when a feature is there."""

    def tap(transformer: nn.Module, index: int, feature: str) -> Tap:
        known = family.tap(transformer, index, feature)

        def tokens(output: object, grid: tuple[int, int]) -> Tensor:
            found[index, feature] = counter.get_total_flops()
            return known.tokens(output, grid)

        return replace(known, tokens=tokens)

    watched = copy.copy(family)
    watched.tap = tap  # type: ignore[method-assign]
    return watched


def _bytes(module: nn.Module) -> int:
    return sum(one.numel() * one.element_size() for one in module.parameters())
