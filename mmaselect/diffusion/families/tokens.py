# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Where image tokens are in what a module returns, and which modules most classes have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from mmaselect.diffusion.families.base import Tap

#: From a module's output and the token grid (h, w) to image tokens (B, h * w, C).
Tokens = Callable[[Any, tuple[int, int]], Tensor]


def last_tokens(output: Tensor, grid: tuple[int, int]) -> Tensor:
    """Image tokens of one sequence in which the text, and registers, come first.

    Args:
        output: (B, text + h * w, C); (B, h * w, C) passes whole.
        grid: Token grid (h, w).

    Returns:
        Tensor: (B, h * w, C).
    """
    return output[:, -grid[0] * grid[1] :]


def first_tokens(output: Tensor, grid: tuple[int, int]) -> Tensor:
    """The same of a sequence in which the image comes first."""
    return output[:, : grid[0] * grid[1]]


def member(index: int) -> Tokens:
    """Image tokens of a module that returns a tuple, of which ``index`` is the image stream."""

    def tokens(output: tuple[Tensor, ...], grid: tuple[int, int]) -> Tensor:
        return output[index]

    return tokens


def usual_taps(
    block: nn.Module,
    attention: nn.Module,
    projected: Tokens,
    attended: Tokens | None = None,
    output: Tokens | None = None,
    post: Tokens | None = None,
    names: tuple[str, str, str] = ('to_q', 'to_k', 'to_v'),
) -> dict[str, Tap]:
    """Taps of a block whose attention layer projects to Q, K and V one by one.

    Args:
        block: The block.
        attention: Its attention layer.
        projected: Where the image tokens are in what the projections give.
        attended: The same for the attention layer; as ``projected`` if None.
        output: The same for the block; as ``attended`` if None.
        post: The same for the operands of the attention product; as ``projected`` if None.
        names: What the attention layer calls its projections.

    Returns:
        dict: Feature to tap, with ``'query_post'`` and ``'key_post'``.
    """
    attended = attended or projected
    post = post or projected
    query, key, value = (attention.get_submodule(name) for name in names)
    return {
        'query': Tap(query, projected),
        'key': Tap(key, projected),
        'value': Tap(value, projected),
        'attention': Tap(attention, attended),
        'output': Tap(block, output or attended),
        'query_post': Tap(attention, post, operand='query'),
        'key_post': Tap(attention, post, operand='key'),
    }
