# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Where else a token recurs: cosine similarity, exact and in a form that fits into a page."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from mmaselect.checks import whole_number


def similarity(maps: Tensor, image: int, row: int, column: int) -> Tensor:
    """Cosine similarity of one token to all tokens of all images.

    Args:
        maps: (images, C, h, w).
        image: Where the token is.
        row: From above.
        column: From the left.

    Returns:
        Tensor: (images, h, w), -1 to 1.

    Raises:
        ValueError: If there is no such token.

    Example:
        >>> import torch
        >>> from mmaselect.look import similarity
        >>> maps = torch.tensor([[[[1.0, 0.0, -1.0]], [[0.0, 1.0, 0.0]]]])
        >>> similarity(maps, image=0, row=0, column=0).tolist()
        [[[1.0, 0.0, -1.0]]]
    """
    if maps.ndim != 4:
        raise ValueError(f'maps must be (images, C, h, w), got {tuple(maps.shape)}')
    image = whole_number('image', image, 0, maps.shape[0] - 1)
    row = whole_number('row', row, 0, maps.shape[2] - 1)
    column = whole_number('column', column, 0, maps.shape[3] - 1)
    tokens = normalize(maps.float(), dim=1)
    return torch.einsum('nchw,c->nhw', tokens, tokens[image, :, row, column])


@dataclass(frozen=True)
class PackedTokens:
    """Tokens whose inner products are nearly the cosines of the full ones.

    Attributes:
        values: (images, h, w, dimensions), int8.
        scale: What an inner product of two of them is multiplied by.
        error: Mean absolute difference to the exact cosine, over pairs drawn at random.
    """

    values: np.ndarray
    scale: float
    error: float


def pack_tokens(maps: Tensor, dimensions: int = 64) -> PackedTokens:
    """Tokens in the directions that hold most of their cosines, as 8-bit numbers.

    Args:
        maps: (images, C, h, w).
        dimensions: How many directions.
    """
    count, channels, height, width = maps.shape
    tokens = normalize(maps.float(), dim=1).permute(0, 2, 3, 1).reshape(-1, channels)
    dimensions = min(dimensions, *tokens.shape)
    if dimensions < channels:
        with torch.random.fork_rng(devices=[tokens.device] if tokens.is_cuda else []):
            torch.manual_seed(0)  # its start is random
            _, _, right = torch.svd_lowrank(tokens, q=dimensions, niter=3)
        packed = tokens @ right
    else:
        packed = tokens
    step = max(packed.abs().max().item(), 1e-12) / 127
    values = torch.round(packed / step)
    pairs = torch.randint(
        len(tokens), (2, 4096), generator=torch.Generator().manual_seed(0)
    ).to(tokens.device)  # fmt: skip
    exact = (tokens[pairs[0]] * tokens[pairs[1]]).sum(1)
    found = (values[pairs[0]] * values[pairs[1]]).sum(1) * step**2
    array = values.to(torch.int8).reshape(count, height, width, -1).cpu().numpy()
    return PackedTokens(array, step**2, (exact - found).abs().mean().item())
