# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Where the image tokens are in what a module returns, for transformers that mix them with text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor


def last_tokens(output: Tensor, grid: tuple[int, int]) -> Tensor:
    """Image tokens of one sequence in which the text, and registers, come first.

    Args:
        output: (B, text + h * w, C); (B, h * w, C) passes whole.
        grid: Token grid (h, w).

    Returns:
        Tensor: (B, h * w, C).
    """
    return output[:, -grid[0] * grid[1] :]


def member(index: int) -> Callable[[Any, tuple[int, int]], Tensor]:
    """Image tokens of a module that returns a tuple, of which ``index`` is the image stream."""

    def tokens(output: tuple[Tensor, ...], grid: tuple[int, int]) -> Tensor:
        return output[index]

    return tokens
