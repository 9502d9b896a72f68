# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""What a search of blocks will hold in memory, said before it is loaded."""

from __future__ import annotations

import diffusers
import torch
from torch import nn

from mmaselect.diffusion.families import Family
from mmaselect.logs import log
from mmaselect.terminal.amounts import bytes_in_words

#: Bytes beyond those of the default block that are worth a line.
_WORTH_A_LINE = 2**30


def say_what_is_loaded(family: Family, blocks: str, dtype: torch.dtype) -> None:
    """Log how much weights a search loads, where they are many more than the default block's.

    Args:
        family: The family, with the config of the model.
        blocks: The search, as a user wrote it.
        dtype: Precision of the weights.
    """
    first, needed = family.default_block + 1, max(family.resolve_blocks(blocks)) + 1
    with torch.device('meta'):
        transformer = getattr(diffusers, family.transformer_class).from_config(
            {**family.config, **family.build_overrides(needed)}
        )
        family.trim(transformer, needed)
    behind = [family.block(transformer, index) for index in range(first, needed)]
    more = dtype.itemsize * sum(map(_count, behind))
    if more >= _WORTH_A_LINE:
        whole = dtype.itemsize * _count(transformer)
        log(
            f'blocks={blocks!r} loads {needed} blocks: {bytes_in_words(whole)} of weights in '
            f'{str(dtype).removeprefix("torch.")}; up to the default block it is '
            f"{bytes_in_words(whole - more)}. blocks='auto:<={first - 1}' loads no more than that"
        )


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
