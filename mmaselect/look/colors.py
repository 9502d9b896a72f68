# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Tokens as colors: the three directions in which they differ most are red, green and blue."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

#: Directions that the randomized decomposition keeps; it is exact enough for the first three.
OVERSAMPLED = 12
#: Share of the tokens at either end whose color is clipped.
CLIPPED = 0.01


def token_scores(maps: Tensor) -> Tensor:
    """Coordinates of tokens along the three directions in which they differ most.

    Fitted over all images together, so that a coordinate means the same in each.

    Args:
        maps: (images, C, h, w).

    Returns:
        Tensor: (images, h, w, 3), of unit variance; zeros where there are fewer directions.
    """
    count, channels, height, width = maps.shape
    tokens = maps.float().permute(0, 2, 3, 1).reshape(-1, channels)
    directions = min(OVERSAMPLED, *tokens.shape)
    with torch.random.fork_rng(devices=[tokens.device] if tokens.is_cuda else []):
        torch.manual_seed(0)  # its start is random
        left, scale, right = torch.pca_lowrank(tokens, q=directions, niter=4)
    left, scale, right = left[:, :3], scale[:3], right[:, :3]
    # A direction has no sign of its own: its largest weight is made positive.
    largest = right.abs().argmax(0, keepdim=True)
    scores = left * right.gather(0, largest).sign() * len(tokens) ** 0.5
    # What is below rounding is not a direction.
    scores = scores * (scale > scale[:1] * 1e-5)
    scores = torch.nn.functional.pad(scores, (0, 3 - scores.shape[1]))
    return scores.reshape(count, height, width, 3)


def turned_to(scores: Tensor, like: Tensor) -> Tensor:
    """Scores in the rotation that brings them nearest to others (orthogonal Procrustes).

    Neighboring timesteps have similar tokens in whatever order and sign of their directions: so
    turned, a thing keeps its color from one to the next.

    Args:
        scores: (..., 3).
        like: Like of the same shape.
    """
    left, _, right = torch.linalg.svd(scores.reshape(-1, 3).T @ like.reshape(-1, 3))
    return scores @ (left @ right)


def scores_to_colors(scores: Tensor) -> np.ndarray:
    """Scores (..., 3) as uint8 colors, each coordinate spread over the range of its channel."""
    flat = scores.reshape(-1, 3).double().cpu().numpy()
    low, high = np.quantile(flat, [CLIPPED, 1 - CLIPPED], axis=0)
    spread = np.where(high > low, high - low, 1.0)
    shares = np.where(high > low, (flat - low) / spread, 0.5)
    colors = np.rint(shares.clip(0, 1) * 255).astype(np.uint8)
    return colors.reshape(tuple(scores.shape))


def token_colors(maps: Tensor) -> np.ndarray:
    """Each token of some feature maps as a color, by PCA over all of them.

    Args:
        maps: (images, C, h, w).

    Returns:
        ndarray: (images, h, w, 3), uint8, RGB. Equal colors are similar tokens, in one image or
        in two.

    Raises:
        ValueError: If the shape is another.

    Example:
        >>> import torch
        >>> from mmaselect.look import token_colors
        >>> maps = torch.zeros(1, 8, 2, 4)
        >>> maps[..., 2:] = 1  # the right half differs from the left
        >>> colors = token_colors(maps)[0]
        >>> colors[0, :, 0].tolist()
        [0, 0, 255, 255]
    """
    if maps.ndim != 4:
        raise ValueError(f'maps must be (images, C, h, w), got {tuple(maps.shape)}')
    return scores_to_colors(token_scores(maps))
