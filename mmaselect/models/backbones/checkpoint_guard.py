# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Refuses a checkpoint whose heads were trained on the features of another frozen model.

The frozen weights are in no checkpoint, so PyTorch cannot see that they differ. What a checkpoint
does hold are two small tensors: a few of the frozen weights, and what was read from them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from mmaselect.diffusion import FrozenDiT, TapKey, sample_values
from mmaselect.logs import log

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


def _is_same_precision(one: Tensor, other: Tensor) -> bool:
    """Whether two signatures of one model are equal to the last bit."""
    one = one.cpu().float()
    both = one.isfinite() & other.isfinite()
    return torch.equal(one[both], other[both])


def _is_whole(value: Any) -> bool:
    """Whether a value is a tensor of whole numbers; truth values and fractions do not count."""
    return (
        isinstance(value, Tensor)
        and value.dtype != torch.bool
        and not value.is_floating_point()
        and not value.is_complex()
    )


def restore_whole_numbers(
    state_dict: dict[str, Any], prefix: str, buffers: Mapping[str, Tensor | None]
) -> None:
    """Make whole numbers again of what a converter of checkpoints has written as float32.

    DeepSpeed's ``zero_to_fp32.py`` casts all buffers. Half precisions would have rounded them, and
    stay what they are.

    Args:
        state_dict: The checkpoint's tensors; changed in place.
        prefix: What precedes the names of the backbone's tensors.
        buffers: The backbone's own, by name.
    """
    for name, own in buffers.items():
        value = state_dict.get(prefix + name)
        if (
            isinstance(value, Tensor)
            and _is_whole(own)
            and value.dtype in (torch.float32, torch.float64)
            and bool((value == value.round()).all())
        ):
            state_dict[prefix + name] = value.to(own.dtype)  # type: ignore[union-attr]


def nothing_read_yet(count: int) -> dict[str, Tensor]:
    """The two tensors of a model whose place has not been picked yet.

    Args:
        count: Maps that it will give.
    """
    return {
        'frozen_signature': torch.full((SIGNATURE_SIZE,), torch.nan),
        'read_from': torch.full((1 + count,), -1),
    }


def says_what_was_read(state_dict: Mapping[str, Any], prefix: str) -> bool:
    """Whether a checkpoint is of a model that had a place; one without the tensors is, too."""
    read_from = state_dict.get(prefix + 'read_from')
    if not isinstance(read_from, Tensor) or not read_from.numel():
        return True
    return bool(read_from.ne(-1).any())


def keys_read(read_from: Any, features: Sequence[str]) -> list[TapKey]:
    """(block, feature) of each map, from what a checkpoint says.

    Args:
        read_from: As in :class:`CheckpointGuard`.
        features: Names of the features that the model's family gives.

    Raises:
        ValueError: If this package does not write such a value.
    """
    known = _is_whole(read_from) and read_from.ndim == 1 and len(read_from) >= 2
    if not known or not 0 <= int(read_from[0]) < len(features):
        raise ValueError(
            f'the checkpoint is damaged, or was edited: read_from is {read_from!r}. Use another one'
        )
    feature, *blocks = read_from.tolist()
    return [(block, features[feature]) for block in blocks]


@dataclass(frozen=True, eq=False)
class CheckpointGuard:
    """What a checkpoint says of the frozen model, and the check of it on loading.

    Attributes:
        pretrained: Where the frozen model came from; named in the error.
        features: Names of the features that the model's family gives.
        signature: (64,), see `weights_signature`.
        read_from: (1 + number of blocks,), int64: index of the feature in ``features``, then the
            blocks.
        num_train_timesteps: Length of the model's training schedule.
        dtype: Precision of the frozen weights.
    """

    pretrained: str
    features: tuple[str, ...]
    signature: Tensor
    read_from: Tensor
    num_train_timesteps: int
    dtype: str

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
        return cls(
            pretrained,
            features,
            weights_signature(dit.transformer),
            read_from,
            dit.num_train_timesteps,
            str(dit.dtype).removeprefix('torch.'),
        )

    def buffers(self) -> dict[str, Tensor]:
        """The two tensors by the names that they have in a checkpoint."""
        return {'frozen_signature': self.signature.clone(), 'read_from': self.read_from.clone()}

    def check(self, state_dict: Mapping[str, Tensor], prefix: str) -> None:
        """Check that a checkpoint belongs to this model.

        Args:
            state_dict: The checkpoint's tensors. Without the two tensors, nothing is checked.
            prefix: What precedes the names of the backbone's tensors.

        Raises:
            ValueError: If it was made with another frozen model, feature or choice of blocks, or
                if one of the tensors, or the timestep next to them, is not what this package
                writes.
        """
        self._check_values(state_dict, prefix)
        signature = state_dict.get(prefix + 'frozen_signature')
        read_from = state_dict.get(prefix + 'read_from')
        # A model that is built to another depth has another signature.
        if read_from is not None and max(read_from[1:]) != max(self.read_from[1:]):
            self._refuse_place(read_from)
        if signature is not None and not is_same_model(signature.cpu().float(), self.signature):
            raise ValueError(
                f'the checkpoint was made with another frozen model than {self.pretrained!r}: its '
                f'heads would read features that they were not trained on. Set pretrained to what '
                f'the checkpoint was trained with'
            )
        if signature is not None and not _is_same_precision(signature, self.signature):
            log(
                'the checkpoint was trained with frozen weights in another precision than '
                f'{self.dtype}: features differ a little. To read them as in training, set dtype '
                'in the backbone to what it was then'
            )
        if read_from is not None and read_from.tolist() != self.read_from.tolist():
            self._refuse_place(read_from)

    def _refuse_place(self, read_from: Tensor) -> NoReturn:
        feature, *blocks = read_from.tolist()
        mine, *here = self.read_from.tolist()
        wrong = []
        if blocks != here:
            wrong.append(('blocks', blocks, here))
        if feature != mine:
            wrong.append(('feature', self.features[feature], self.features[mine]))
        told = ', and '.join(f'{name} {was!r}, the config says {now!r}' for name, was, now in wrong)
        raise ValueError(
            f'the checkpoint was trained with {told}. Set '
            f'{" and ".join(name for name, *_ in wrong)} to what the checkpoint was trained with'
        )

    def _check_values(self, state_dict: Mapping[str, Any], prefix: str) -> None:
        def refuse(name: str, expected: str) -> None:
            raise ValueError(
                f'the checkpoint is damaged, or was edited: {prefix}{name} must be {expected}, and '
                f'is {state_dict[prefix + name]!r}. Use another checkpoint'
            )

        pick = state_dict.get(prefix + 'picked_timestep')
        if pick is not None:
            last = self.num_train_timesteps - 1
            if not _is_whole(pick) or pick.ndim or not -1 <= int(pick) <= last:
                refuse(
                    'picked_timestep', f'a whole number from 0 to {last}, or -1 for none picked yet'
                )
        read_from = state_dict.get(prefix + 'read_from')
        if read_from is not None:
            known = _is_whole(read_from) and read_from.ndim == 1 and len(read_from) >= 2
            if not known or not 0 <= int(read_from[0]) < len(self.features):
                refuse(
                    'read_from',
                    f'the index of a feature, from 0 to {len(self.features) - 1}, and those of '
                    f'one or more blocks',
                )
        signature = state_dict.get(prefix + 'frozen_signature')
        if signature is not None:
            known = isinstance(signature, Tensor) and signature.is_floating_point()
            if not known or signature.ndim != 1 or not len(signature):
                refuse('frozen_signature', f'{SIGNATURE_SIZE} weights of the frozen model')
            readable = bool(self.signature.isfinite().any())
            if bool(signature.isinf().any()) or (readable and bool(signature.isnan().all())):
                refuse('frozen_signature', f'{SIGNATURE_SIZE} weights of the frozen model')
