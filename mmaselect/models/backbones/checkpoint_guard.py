# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Refuses a checkpoint whose heads were trained on the features of another frozen model.

The frozen weights are in no checkpoint, so PyTorch cannot see that they differ. What a checkpoint
does hold are two small tensors: a few of the frozen weights, and what was read from them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmaselect.diffusion import FrozenDiT, sample_values

#: Values of the frozen weights kept in a checkpoint, to tell it from one made with another model.
SIGNATURE_SIZE = 64


def weights_signature(model: nn.Module) -> Tensor:
    """A few weights from all over a model: (64,), float32, on the CPU.

    Weights that are not in reach (on the meta device) are NaN.
    """
    named = sorted(model.named_parameters(), key=lambda item: item[0])
    chosen = torch.linspace(0, len(named) - 1, SIGNATURE_SIZE).long().tolist()
    values = torch.full((SIGNATURE_SIZE,), torch.nan, device='cpu')
    for position, index in enumerate(chosen):
        sample = sample_values(named[index][1], SIGNATURE_SIZE)
        if len(sample):
            values[position] = sample[(position * 7919) % len(sample)]
    return values


def is_same_model(one: Tensor, other: Tensor) -> bool:
    """Whether two signatures are of one model, whatever their precision."""
    if one.shape != other.shape:
        return False
    # Weights that an offloading device map keeps elsewhere are NaN here, and compared with nothing.
    both = one.isfinite() & other.isfinite()
    # bf16 rounds by less than 1 %; int8 by up to a 254th of a row's largest weight.
    return torch.allclose(one[both], other[both], rtol=2e-2, atol=5e-3)


@dataclass(frozen=True, eq=False)
class CheckpointGuard:
    """What a checkpoint says of the frozen model, and the check of it on loading.

    Attributes:
        pretrained: Where the frozen model came from; named in the error.
        features: Names of the features that the model's family gives.
        signature: (64,), see `weights_signature`.
        read_from: (1 + number of blocks,), int64: index of the feature in ``features``, then the
            blocks.
    """

    pretrained: str
    features: tuple[str, ...]
    signature: Tensor
    read_from: Tensor

    @classmethod
    def of(cls, dit: FrozenDiT, feature: str, pretrained: str) -> CheckpointGuard:
        """The guard of a frozen model of which one feature is read.

        Args:
            dit: The frozen model.
            feature: Which of its family's features is read.
            pretrained: Where it came from.
        """
        features = tuple(dit.family.features)
        read_from = torch.tensor([features.index(feature), *dit.blocks])
        return cls(pretrained, features, weights_signature(dit.transformer), read_from)

    def buffers(self) -> dict[str, Tensor]:
        """The two tensors by the names that they have in a checkpoint."""
        return {'frozen_signature': self.signature.clone(), 'read_from': self.read_from.clone()}

    def check(self, state_dict: Mapping[str, Tensor], prefix: str) -> None:
        """See that a checkpoint belongs to this model.

        Args:
            state_dict: The checkpoint's tensors. Without the two tensors, nothing is checked.
            prefix: What precedes the names of the backbone's tensors.

        Raises:
            ValueError: If it was made with another frozen model, feature or choice of blocks.
        """
        signature = state_dict.get(prefix + 'frozen_signature')
        if signature is not None and not is_same_model(signature.cpu().float(), self.signature):
            raise ValueError(
                f'the checkpoint was made with another frozen model than {self.pretrained!r}: its '
                f'heads would read features that they were not trained on. Set pretrained (and '
                f'blocks) to what the checkpoint was trained with'
            )
        read_from = state_dict.get(prefix + 'read_from')
        if read_from is not None and read_from.tolist() != self.read_from.tolist():
            theirs, mine = (self._in_words(tensor) for tensor in (read_from, self.read_from))
            raise ValueError(
                f'the checkpoint was trained on the {theirs}, but this config reads the {mine}'
            )

    def _in_words(self, read_from: Tensor) -> str:
        feature, *blocks = read_from.tolist()
        return f'{self.features[feature]} of blocks {blocks}'
