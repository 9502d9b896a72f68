# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Classification by attention pooling: the trained head of A-SelecT's reference code."""

from collections.abc import Sequence
from typing import Any

import torch
from mmpretrain.models.heads import ClsHead
from torch import Tensor, nn

from mmaselect.openmmlab.registries import MODELS


def class_token_of(block: nn.TransformerEncoderLayer, tokens: Tensor) -> Tensor:
    """The first token after a pre-norm attention block: (B, N, C) to (B, C).

    Equal to ``block(tokens)[:, 0]``, for what it costs to compute no other token: all of them give
    keys and values, and the first alone asks, and goes through the MLP.

    Args:
        block: Built with ``norm_first=True`` and ``batch_first=True``.
        tokens: What goes into it.
    """
    normed = block.norm1(tokens)
    attended, _ = block.self_attn(normed[:, :1], normed, normed, need_weights=False)
    token = tokens[:, 0] + block.dropout1(attended[:, 0])
    hidden = block.dropout(block.activation(block.linear1(block.norm2(token))))
    return token + block.dropout2(block.linear2(hidden))


@MODELS.register_module()
class AttentionPoolClsHead(ClsHead):
    """Pool the tokens of frozen feature maps with a few attention blocks, then classify.

    A linear layer takes every token from C to ``embed_dims`` channels, a learnt class token joins
    them, pre-norm transformer blocks mix all of them, and a linear layer reads the class token; the
    last block computes that one alone.
    There is no position embedding: features of a diffusion transformer carry positions already, and
    so any number of tokens will do. With the defaults, C = 1536 and 200 classes, 16.77 M parameters
    are trained: the 16.8 M of `A-SelecT <https://arxiv.org/abs/2603.25758>`_'s reference code.

    Args:
        num_classes: Number of classes.
        in_channels: Channels of the map(s) that ``in_index`` picks; a
            sequence holds one number per map.
        in_index: Which of the backbone's maps to read, negative ones from the
            end. Several maps of one size are concatenated along the channels. Defaults to -1.
        embed_dims: Width of the attention blocks. Defaults to 800.
        num_layers: Number of attention blocks. Defaults to 2.
        num_heads: Heads per block. Defaults to 8.
        mlp_ratio: Hidden width of a block's MLP over ``embed_dims``. Defaults to 4.
        drop_rate: Dropout in the blocks, in [0, 1). Defaults to 0.
        final_norm: Whether a LayerNorm stands before the last layer. Defaults to False, as
            in the reference.
        init_cfg: Initialization. Defaults to None, which stands for
            ``dict(type='TruncNormal', layer='Linear', std=0.02)``; ``[]`` keeps PyTorch's own.
        **kwargs: ``loss``, ``topk`` and ``cal_acc`` of :class:`mmpretrain.models.heads.ClsHead`.

    Raises:
        ValueError: If ``num_classes`` or ``num_layers`` is not positive, ``embed_dims`` is no
            multiple of ``num_heads``, or ``in_channels`` and ``in_index`` differ in length.

    Example:
        >>> import torch
        >>> from mmaselect.models.heads import AttentionPoolClsHead
        >>> head = AttentionPoolClsHead(num_classes=10, in_channels=32, embed_dims=16)
        >>> head((torch.rand(2, 32, 8, 6), )).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int | Sequence[int],
        in_index: int | Sequence[int] = -1,
        embed_dims: int = 800,
        num_layers: int = 2,
        num_heads: int = 8,
        mlp_ratio: float = 4.0,
        drop_rate: float = 0.0,
        final_norm: bool = False,
        init_cfg: dict | list | None = None,
        **kwargs: Any,
    ) -> None:
        if init_cfg is None:
            init_cfg = dict(type='TruncNormal', layer='Linear', std=0.02)
        super().__init__(init_cfg=init_cfg, **kwargs)
        if num_classes < 1:
            raise ValueError(f'num_classes is {num_classes}; it must be at least 1.')
        if num_layers < 1:
            raise ValueError(f'num_layers is {num_layers}; it must be at least 1.')
        if embed_dims % num_heads:
            raise ValueError(
                f'embed_dims is {embed_dims}; it must be a multiple of num_heads, {num_heads}.'
            )
        self.in_index = (in_index,) if isinstance(in_index, int) else tuple(in_index)
        self.in_channels = (in_channels,) if isinstance(in_channels, int) else tuple(in_channels)
        if len(self.in_index) != len(self.in_channels):
            raise ValueError(
                f'in_index={in_index} picks {len(self.in_index)} map(s) and in_channels='
                f'{in_channels} describes {len(self.in_channels)}; give one number for each map.'
            )
        self.num_classes = num_classes
        self.project = nn.Linear(sum(self.in_channels), embed_dims)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dims))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                embed_dims,
                num_heads,
                dim_feedforward=int(embed_dims * mlp_ratio),
                dropout=drop_rate,
                activation='gelu',
                batch_first=True,
                norm_first=True,
            )
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(embed_dims) if final_norm else nn.Identity()
        self.fc = nn.Linear(embed_dims, num_classes)

    def init_weights(self) -> None:
        """Initialize the layers, and the class token, which ``init_cfg`` does not reach."""
        super().init_weights()
        nn.init.trunc_normal_(self.cls_token, std=0.02)

    def pre_logits(self, feats: Sequence[Tensor]) -> Tensor:
        """Pool feature maps into one vector an image.

        Args:
            feats: The backbone's maps, each (B, C, H, W).

        Returns:
            Tensor: The class token after the last block, (B, embed_dims).

        Raises:
            ValueError: If a map's channels are not those of ``in_channels``.
        """
        maps = [feats[index] for index in self.in_index]
        channels = tuple(feature.shape[1] for feature in maps)
        if channels != self.in_channels:
            raise ValueError(
                f'AttentionPoolClsHead got maps of {channels} channels and was built for '
                f'in_channels={self.in_channels}; set `in_channels` to what the backbone gives.'
            )
        tokens = torch.cat(maps, dim=1).flatten(2).transpose(1, 2)
        tokens = self.project(tokens)
        tokens = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], dim=1)
        for block in self.blocks[:-1]:
            tokens = block(tokens)
        last = self.blocks[-1]
        assert isinstance(last, nn.TransformerEncoderLayer)
        return self.norm(class_token_of(last, tokens))

    def forward(self, feats: Sequence[Tensor]) -> Tensor:
        """Classify feature maps (see :meth:`pre_logits`): logits of shape (B, num_classes)."""
        return self.fc(self.pre_logits(feats))
