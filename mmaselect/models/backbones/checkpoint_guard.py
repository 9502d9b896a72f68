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
from mmaselect.diffusion.joining import maps_in_words
from mmaselect.logs import log

#: Numbers of a row of ``read_from``: map, block, index of the feature.
ROW = 3
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


def nothing_read_yet(count: int, joined: int = 1) -> dict[str, Tensor]:
    """The two tensors of a model whose place has not been picked yet.

    Args:
        count: Maps that it will give.
        joined: (block, feature) that will be joined into its one map.
    """
    shape = (1 + count,) if joined == 1 else (joined, ROW)
    return {
        'frozen_signature': torch.full((SIGNATURE_SIZE,), torch.nan),
        'read_from': torch.full(shape, -1),
    }


def says_what_was_read(state_dict: Mapping[str, Any], prefix: str) -> bool:
    """Whether a checkpoint is of a model that had a place; one without the tensors is, too."""
    read_from = state_dict.get(prefix + 'read_from')
    if not isinstance(read_from, Tensor) or not read_from.numel():
        return True
    return bool(read_from.ne(-1).any())


def _is_read_from(value: Any, features: Sequence[str]) -> bool:
    """Whether a value is what this package writes as ``read_from``."""
    if not _is_whole(value) or not value.numel():
        return False
    if value.ndim == 2:
        numbers = value[:, -1]
        if value.shape[1] != ROW or value[:, 0].tolist() != sorted(value[:, 0].tolist()):
            return False
    elif value.ndim == 1 and len(value) >= 2:
        numbers = value[:1]
    else:
        return False
    return bool(((numbers >= 0) & (numbers < len(features))).all())


def maps_read(read_from: Any, features: Sequence[str]) -> tuple[tuple[TapKey, ...], ...]:
    """(block, feature) of each map, those of one map together, from what a checkpoint says.

    Args:
        read_from: As in :class:`CheckpointGuard`.
        features: Names of the features that the model's family gives.

    Raises:
        ValueError: If this package does not write such a value.
    """
    if not _is_read_from(read_from, features):
        raise ValueError(
            f'the checkpoint is damaged, or was edited: read_from is {read_from!r}. Use another one'
        )
    if read_from.ndim == 1:
        feature, *blocks = read_from.tolist()
        return tuple(((block, features[feature]),) for block in blocks)
    maps: dict[int, list[TapKey]] = {}
    for place, block, feature in read_from.tolist():
        maps.setdefault(place, []).append((block, features[feature]))
    return tuple(map(tuple, maps.values()))


def as_read_from(maps: Sequence[Sequence[TapKey]], features: Sequence[str]) -> Tensor:
    """The inverse of :func:`maps_read`; of maps of one feature, in the form that all versions read.

    Example:
        >>> as_read_from([[(2, 'query')], [(4, 'query')]], ['query', 'key']).tolist()
        [0, 2, 4]
        >>> as_read_from([[(2, 'query'), (2, 'key')]], ['query', 'key']).tolist()
        [[0, 2, 0], [0, 2, 1]]
    """
    names = {feature for group in maps for _, feature in group}
    if len(names) == 1 and all(len(group) == 1 for group in maps):
        return torch.tensor([features.index(names.pop()), *(group[0][0] for group in maps)])
    return torch.tensor(
        [
            (place, block, features.index(feature))
            for place, group in enumerate(maps)
            for block, feature in group
        ]
    )


@dataclass(frozen=True, eq=False)
class CheckpointGuard:
    """What a checkpoint says of the frozen model, and the check of it on loading.

    Attributes:
        pretrained: Where the frozen model came from; named in the error.
        features: Names of the features that the model's family gives.
        signature: (64,), see `weights_signature`.
        read_from: What is read, int64. Of maps of one feature (1 + number of blocks,): index of the
            feature in ``features``, then the blocks. Of joined features (number of these, 3): map,
            block and index of the feature.
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
    def of(cls, dit: FrozenDiT, pretrained: str) -> CheckpointGuard:
        """The guard of a frozen model.

        Args:
            dit: The frozen model, at its place.
            pretrained: Where it came from.
        """
        features = tuple(dit.family.features)
        read_from = as_read_from(dit.maps, features)
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
        if read_from is not None and self._depth(read_from) != self._depth(self.read_from):
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

    def _depth(self, read_from: Tensor) -> int:
        """The deepest block that is read."""
        return max(block for group in maps_read(read_from, self.features) for block, _ in group)

    def _refuse_place(self, read_from: Tensor) -> NoReturn:
        was, now = (maps_read(one, self.features) for one in (read_from, self.read_from))
        if read_from.ndim == self.read_from.ndim == 1:
            blocks, here = ([block for ((block, _),) in maps] for maps in (was, now))
            feature, mine = was[0][0][1], now[0][0][1]
            both = (('blocks', blocks, here), ('feature', feature, mine))
            wrong = [one for one in both if one[1] != one[2]]
            told = ', and '.join(f'{n} {one!r}, the config says {two!r}' for n, one, two in wrong)
            names = ' and '.join(name for name, *_ in wrong)
        else:
            told = f'{maps_in_words(was)}, the config says {maps_in_words(now)}'
            names = 'blocks and feature'
        raise ValueError(
            f'the checkpoint was trained with {told}. Set {names} to what the checkpoint was '
            f'trained with'
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
        if read_from is not None and not _is_read_from(read_from, self.features):
            refuse(
                'read_from',
                f'the index of a feature, from 0 to {len(self.features) - 1}, and those of '
                f'one or more blocks; or rows of map, block and feature',
            )
        signature = state_dict.get(prefix + 'frozen_signature')
        if signature is not None:
            known = isinstance(signature, Tensor) and signature.is_floating_point()
            if not known or signature.ndim != 1 or not len(signature):
                refuse('frozen_signature', f'{SIGNATURE_SIZE} weights of the frozen model')
            readable = bool(self.signature.isfinite().any())
            if bool(signature.isinf().any()) or (readable and bool(signature.isnan().all())):
                refuse('frozen_signature', f'{SIGNATURE_SIZE} weights of the frozen model')
