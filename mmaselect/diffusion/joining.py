# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Several features of one pass as one map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mmaselect.checks import choice, keywords

#: How features of one pass become one map. The second one needs images that it is fitted to.
JOININGS = ('concat', 'concat:pca')
#: Keys of a dict that says which features are read, and how they are joined.
FEATURE_KEYS = ('names', 'fusion')


def parse_feature(feature: Any) -> tuple[Any, str]:
    """Names of features and how they are joined, from what a config says.

    Args:
        feature: One name or several, or a dict of such ``names`` and ``fusion``.

    Raises:
        ValueError: If a dict has other keys, or there is no such fusion.

    Example:
        >>> parse_feature(dict(names=['query', 'attention'], fusion='concat:pca'))
        (['query', 'attention'], 'concat:pca')
    """
    if not isinstance(feature, Mapping):
        return feature, JOININGS[0]
    given = keywords('feature', feature, FEATURE_KEYS)
    fusion = choice("feature's fusion", given.get('fusion', JOININGS[0]), JOININGS)
    return given.get('names', 'query'), fusion


def join_maps(
    maps: Mapping[tuple[int, str], Tensor], groups: Sequence[Sequence[tuple[int, str]]]
) -> list[Tensor]:
    """One map for each group of (block, feature): its channels one after another.

    Args:
        maps: (B, C, H, W) by (block, feature).
        groups: See :attr:`~mmaselect.diffusion.FrozenDiT.maps`.
    """
    return [
        maps[group[0]] if len(group) == 1 else torch.cat([maps[key] for key in group], 1)
        for group in groups
    ]


def map_name(group: Sequence[tuple[int, str]]) -> str:
    """Name of a map that is joined from some (block, feature).

    Example:
        >>> map_name([(3, 'query')]), map_name([(3, 'query'), (3, 'key')])
        ('block3.query', 'block3.query+key')
        >>> map_name([(2, 'attention'), (4, 'query')])
        'block2.attention+block4.query'
    """
    blocks = {block for block, _ in group}
    if len(blocks) == 1:
        return f'block{group[0][0]}.{"+".join(feature for _, feature in group)}'
    return '+'.join(f'block{block}.{feature}' for block, feature in group)


def maps_in_words(maps: Sequence[Sequence[tuple[int, str]]]) -> str:
    """Where a model is read, such as ``query of block 2, 4``.

    Example:
        >>> maps_in_words([[(2, 'query')], [(4, 'query')]])
        'query of block 2, 4'
        >>> maps_in_words([[(2, 'attention'), (4, 'query')]])
        'block2.attention+block4.query'
    """
    names = {feature for group in maps for _, feature in group}
    if len(names) == 1 and all(len(group) == 1 for group in maps):
        return f'{names.pop()} of block {", ".join(str(block) for ((block, _),) in maps)}'
    return ', '.join(map(map_name, maps))
