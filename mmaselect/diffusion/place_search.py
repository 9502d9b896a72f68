# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""How users say where a model is read: open (``'auto'``, ``'auto:4'``, ``'auto:<=30'``), or as
(block, feature) that are joined (``['2.attention', '4.query']``).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mmaselect.checks import is_sequence, shorten

#: Features that a search reads; those after norm and rotary embedding are read by name alone.
SEARCHED = ('query', 'key', 'value', 'attention', 'output')

_FORM = re.compile(r'auto(?::([0-9]{1,4}))?(?::<=([0-9]{1,5}))?')
_JOINED = re.compile(r'(-?[0-9]{1,5})\.([a-z_]+)')


def named_cells(feature: Any, blocks: Any) -> list[tuple[int, str]] | None:
    """(block, feature) of names such as ``'2.attention'``; None if no name has a block.

    Args:
        feature: What a user gave.
        blocks: What a user gave as ``blocks``, which must be None next to such names.

    Raises:
        ValueError: If only some names have a block, or ``blocks`` is given, too.

    Example:
        >>> named_cells(['2.attention', '-1.query'], None)
        [(2, 'attention'), (-1, 'query')]
    """
    names = list(feature) if is_sequence(feature) else [feature]
    forms = [_JOINED.fullmatch(name) if isinstance(name, str) else None for name in names]
    if not any(forms):
        return None
    found = [(int(form[1]), form[2]) for form in forms if form is not None]
    if len(found) < len(names):
        raise ValueError(
            f"feature: give a block to each name, as in ['2.attention', '4.query'], or to none; "
            f'got {shorten(names)}'
        )
    if blocks is not None:
        raise ValueError(
            f'feature={shorten(names)} names the blocks already: leave out blocks={shorten(blocks)}'
        )
    return found


def as_arguments(
    cells: Sequence[tuple[int, str]], joined: bool = False
) -> tuple[list[int] | None, list[str]]:
    """``blocks`` and ``feature`` that read some (block, feature).

    Args:
        cells: What is read.
        joined: Whether these are one map.

    Example:
        >>> as_arguments([(1, 'query'), (3, 'query')])
        ([1, 3], ['query'])
        >>> as_arguments([(2, 'attention'), (4, 'query')])
        (None, ['2.attention', '4.query'])
    """
    names = list(dict.fromkeys(feature for _, feature in cells))
    blocks = list(dict.fromkeys(block for block, _ in cells))
    if len(names) == 1 and not joined:
        return [block for block, _ in cells], names
    if not joined and list(cells) == [(block, name) for block in blocks for name in names]:
        return blocks, names
    return None, [f'{block}.{feature}' for block, feature in cells]


@dataclass(frozen=True)
class BlockSearch:
    """What ``blocks='auto...'`` asks for.

    Attributes:
        count: Maps that are wanted, each of another block.
        last: The deepest block that may be picked; None for the last one.
    """

    count: int = 1
    last: int | None = None

    @classmethod
    def parse(cls, spec: str) -> BlockSearch:
        """A search as a user writes it.

        Raises:
            ValueError: If the text is not a search.

        Example:
            >>> BlockSearch.parse('auto:4:<=30')
            BlockSearch(count=4, last=30)
        """
        form = _FORM.fullmatch(spec)
        if form is None or form[1] == '0':
            raise ValueError(
                f"blocks must be block numbers, 'auto', 'auto:4' for the four maps that a head "
                f"wants, or 'auto:<=30' for block 30 at most, got {shorten(spec)}"
            )
        return cls(int(form[1] or 1), None if form[2] is None else int(form[2]))

    def candidates(self, num_blocks: int, title: str) -> tuple[int, ...]:
        """Blocks that must be built.

        Args:
            num_blocks: Blocks of the whole model.
            title: Title of the model's family, for messages.

        Raises:
            ValueError: If the model has fewer blocks than are wanted.
        """
        last = num_blocks - 1 if self.last is None else self.last
        if last >= num_blocks:
            raise ValueError(
                f'block {last} is out of range: this {title} has {num_blocks} blocks, 0 to '
                f'{num_blocks - 1}'
            )
        if self.count > last + 1:
            raise ValueError(f'{self.count} blocks are wanted of {last + 1}: ask for fewer')
        return tuple(range(last + 1))


@dataclass(frozen=True)
class PlaceSearch:
    """Which of the built (block, feature) are read is picked with the timestep.

    Attributes:
        count: Maps that are wanted: 1, or more where blocks are searched.
        blocks: Whether the blocks are searched.
        features: Whether the feature is searched.
        published: The place that a paper reads in this family, which stays where images cannot tell
            a better one; None where there is no such place.
    """

    count: int
    blocks: bool
    features: bool
    published: tuple[int, str] | None

    @classmethod
    def of(
        cls, blocks: Any, features: str | Sequence[str], published_block: int | None
    ) -> PlaceSearch | None:
        """The search that arguments ask for; None where they name what is read.

        Args:
            blocks: As :meth:`FrozenDiT.from_pretrained` takes them.
            features: As it takes them.
            published_block: The block whose queries a paper reads in this family, if there is one.
        """
        block_search = BlockSearch.parse(blocks) if isinstance(blocks, str) else None
        searches_features = isinstance(features, str) and features == 'auto'
        if block_search is None and not searches_features:
            return None
        feature = 'query'
        if not searches_features:
            feature = features if isinstance(features, str) else next(iter(features))
        count = 1 if block_search is None else block_search.count
        published = None
        if published_block is not None and feature == 'query':
            published = (published_block, feature)
        return cls(count, block_search is not None, searches_features, published)
