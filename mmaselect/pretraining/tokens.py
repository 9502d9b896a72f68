# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Training on a random part of the tokens (as MaskDiT, arXiv 2306.09305, without its decoder)."""

from __future__ import annotations

import math

import torch
from diffusers import DiTTransformer2DModel
from torch import Tensor, nn


def to_tokens(samples: Tensor, patch: int) -> Tensor:
    """Cut (B, C, H, W) into (B, N, C * patch * patch), row by row."""
    batch, channels, height, width = samples.shape
    grid = samples.reshape(batch, channels, height // patch, patch, width // patch, patch)
    return grid.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * patch * patch)


class TokenDrop:
    """Forward hook of a DiT's ``pos_embed``: only some tokens, with their positions, go on.

    DiT puts its output together as a square, whatever the tokens were; so their number is a square
    number, and the output's tokens are compared with those that were kept.

    Args:
        model: The network.
        keep: Share of the tokens to keep, 0 to 1; rounded to the nearest square number of tokens.
    """

    def __init__(self, model: DiTTransformer2DModel, keep: float = 1.0) -> None:
        self.patch = model.config.patch_size
        self.total = (model.config.sample_size // self.patch) ** 2
        self.count = max(1, round(math.sqrt(self.total * keep))) ** 2
        self._index: Tensor | None = None
        if self.count < self.total:
            model.pos_embed.register_forward_hook(self._drop)

    def draw(self, batch: int, generator: torch.Generator) -> Tensor | None:
        """Draw which tokens to keep: (B, count), or None where all are."""
        if self.count == self.total:
            return None
        order = torch.rand(batch, self.total, generator=generator, device=generator.device)
        return order.argsort(1)[:, : self.count]

    def use(self, index: Tensor | None) -> None:
        """Say which tokens the next pass keeps."""
        self._index = index

    def _drop(self, module: nn.Module, inputs: tuple, output: Tensor) -> Tensor | None:
        if self._index is None:
            return None
        return self._gather(output, self._index)

    def kept(self, samples: Tensor, index: Tensor | None) -> Tensor:
        """The samples' tokens that were kept; the samples as they are where all were."""
        if index is None:
            return samples
        return self._gather(to_tokens(samples, self.patch), index)

    def output_tokens(self, output: Tensor, index: Tensor | None) -> Tensor:
        """The network's output, in the shape that `kept` returns."""
        return output if index is None else to_tokens(output, self.patch)

    @staticmethod
    def _gather(tokens: Tensor, index: Tensor) -> Tensor:
        return tokens.gather(1, index[..., None].expand(-1, -1, tokens.shape[-1]))
