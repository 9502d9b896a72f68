# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""A transformer as the DiT paper (arXiv 2212.09748) describes it, with the published weight names.

Written for the tests, from sections 3.2 and 3.3 of the paper and the names in the checkpoints.
"""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F


def sines(positions, width):
    """Half sines, half cosines, of frequencies 1 to (not quite) 1 / 10000."""
    angles = np.outer(positions, 10000.0 ** -(np.arange(width // 2) / (width // 2)))
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def position_table(side, width):
    """(1, side^2, width): columns in the first half of the channels, rows in the second."""
    rows, columns = np.divmod(np.arange(side**2), side)
    table = np.concatenate([sines(columns, width // 2), sines(rows, width // 2)], axis=1)
    return torch.from_numpy(table).float()[None]


class PatchEmbedder(nn.Module):
    def __init__(self, channels, patch, width):
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, patch)

    def forward(self, latent):
        return self.proj(latent).flatten(2).mT


class TimeEmbedder(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, time):
        frequencies = torch.exp(-np.log(10000) * torch.arange(128) / 128)
        angles = time.float()[:, None] * frequencies
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=1))


class LabelEmbedder(nn.Module):
    def __init__(self, classes, width):
        super().__init__()
        self.embedding_table = nn.Embedding(classes + 1, width)

    def forward(self, labels):
        return self.embedding_table(labels)


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x):
        q, k, v = (
            t.unflatten(2, (self.heads, -1)).transpose(1, 2) for t in self.qkv(x).chunk(3, 2)
        )
        weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x), approximate='tanh'))


def normalized(x, shift, scale):
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale[:, None]) + shift[:, None]


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.attn = Attention(width, heads)
        self.mlp = MLP(width)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x, c):
        shift, scale, gate, shift2, scale2, gate2 = self.adaLN_modulation(c).chunk(6, dim=1)
        x = x + gate[:, None] * self.attn(normalized(x, shift, scale))
        return x + gate2[:, None] * self.mlp(normalized(x, shift2, scale2))


class FinalLayer(nn.Module):
    def __init__(self, width, outputs):
        super().__init__()
        self.linear = nn.Linear(width, outputs)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))


class OriginalDiT(nn.Module):
    """DiT, and SiT: they differ in what ``time`` is."""

    def __init__(
        self, side=8, patch=2, channels=4, width=16, depth=4, heads=2, classes=10, sigma=True
    ):
        super().__init__()
        self.x_embedder = PatchEmbedder(channels, patch, width)
        self.t_embedder = TimeEmbedder(width)
        self.y_embedder = LabelEmbedder(classes, width)
        self.pos_embed = nn.Parameter(position_table(side // patch, width), requires_grad=False)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.final_layer = FinalLayer(width, patch**2 * channels * (2 if sigma else 1))
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if name != 'pos_embed':
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.15)

    def forward(self, latent, time, labels):
        x = self.x_embedder(latent) + self.pos_embed
        c = self.t_embedder(time) + self.y_embedder(labels)
        for block in self.blocks:
            x = block(x, c)
        return x

    @torch.no_grad()
    def features(self, latent, time, labels):
        """(block, feature) to tokens, by hooks."""
        found, handles = {}, []
        for index, block in enumerate(self.blocks):

            def qkv(module, args, output, index=index):
                names = ('query', 'key', 'value')
                found.update(
                    {(index, n): t for n, t in zip(names, output.chunk(3, 2), strict=True)}
                )

            def whole(name, index=index):
                return lambda module, args, output: found.update({(index, name): output})

            handles += [
                block.attn.qkv.register_forward_hook(qkv),
                block.attn.register_forward_hook(whole('attention')),
                block.register_forward_hook(whole('output')),
            ]
        self(latent, time, labels)
        for handle in handles:
            handle.remove()
        return found
