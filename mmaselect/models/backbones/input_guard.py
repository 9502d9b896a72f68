# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Refuses a checkpoint whose heads were trained on other pixels or under another condition.

Two small tensors of a checkpoint say how pixels arrived and which condition the frozen model had.
A checkpoint of a version that wrote neither is read as before.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmaselect.diffusion.pixel_gate import ORDERS
from mmaselect.logs import log

#: Names of the two tensors.
ARRIVES, CONDITIONED = 'arrives_as', 'conditioned_on'
#: Bytes of the condition's tensor: a digest, and as much of the text as fits.
_DIGEST_SIZE, CONDITION_SIZE = 32, 256
#: An averaged or halved copy of a model rounds the tensor.
_ROUNDED = 1e-2


@dataclass(frozen=True)
class InputGuard:
    """What a backbone takes, as a checkpoint says it, and the check of it on loading.

    Attributes:
        mean: What is added to the pixels again, in 0..255 units.
        std: Factor of the pixels, before the mean is added.
        order: Order of the channels: of images as they are loaded where a ``data_preprocessor``
            tells what it does, and as they arrive otherwise. None if it is open.
        told: Whether a ``data_preprocessor`` tells mean and std. They are then undone exactly, and
            a checkpoint of another normalization gets the same features.
        condition: The condition, in words.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    order: str | None
    told: bool
    condition: str

    def buffers(self) -> dict[str, Tensor]:
        """The two tensors by the names that they have in a checkpoint: (8,) and (256,)."""
        order = torch.nan if self.order is None else float(ORDERS.index(self.order))
        text = self.condition.encode()
        record = hashlib.sha256(text).digest() + text
        record = record[:CONDITION_SIZE].ljust(CONDITION_SIZE, b'\0')
        return {
            ARRIVES: torch.tensor([float(self.told), *self.mean, *self.std, order]),
            CONDITIONED: torch.tensor(list(record), dtype=torch.uint8),
        }

    def complete(self, state_dict: dict[str, Any], prefix: str) -> None:
        """Give the tensors to a checkpoint of a version that did not write them.

        Args:
            state_dict: The checkpoint's tensors; changed in place.
            prefix: What precedes the names of the backbone's tensors.
        """
        for name, value in self.buffers().items():
            state_dict.setdefault(prefix + name, value)

    def check(self, state_dict: Mapping[str, Any], prefix: str) -> None:
        """Check that a checkpoint was trained on what this backbone gives to the frozen model.

        Args:
            state_dict: The checkpoint's tensors. Without the two tensors, nothing is checked.
            prefix: What precedes the names of the backbone's tensors.

        Raises:
            ValueError: If pixels arrived otherwise, if the condition was another, or if one of the
                tensors is not what this package writes.
        """
        mine = self.buffers()
        for name, value in mine.items():
            self._check_values(state_dict, prefix, name, value)
        if prefix + ARRIVES in state_dict:
            self._check_pixels(state_dict[prefix + ARRIVES], prefix)
        theirs = state_dict.get(prefix + CONDITIONED)
        if theirs is not None and not torch.equal(theirs.cpu(), mine[CONDITIONED]):
            text = bytes(theirs.tolist())[_DIGEST_SIZE:].rstrip(b'\0').decode(errors='ignore')
            raise ValueError(
                f'the checkpoint was trained with condition {text}, the config says '
                f'{self.condition}. Set condition to what the checkpoint was trained with'
            )

    def _check_pixels(self, theirs: Tensor, prefix: str) -> None:
        told, *values, order = theirs.tolist()
        if bool(told) != self.told:
            return  # one of the two tells how pixels are loaded, the other how they arrive
        for name, was, now in (
            ('input_mean', values[:3], self.mean),
            ('input_std', values[3:], self.std),
        ):
            # A preprocessor of whole numbers gives whole numbers.
            one, other = (torch.tensor(each, dtype=torch.float32) for each in (was, now))
            if torch.allclose(one, other, rtol=_ROUNDED, atol=_ROUNDED):
                continue
            shown, here = (str([round(one, 3) for one in each]) for each in (was, now))
            if self.told:
                log(
                    f'the checkpoint was trained with a data_preprocessor of {name[6:]} {shown}, '
                    f'and the one of this model has {here}. The backbone undoes either'
                )
                continue
            raise ValueError(
                f'the checkpoint was trained with {name}={shown}, the config says {here}. Set '
                f'{name} to what the checkpoint was trained with'
            )
        if math.isnan(order) or self.order is None or ORDERS[int(order)] == self.order:
            return
        stored, mine = ORDERS[int(order)], self.order
        if not self.told:
            raise ValueError(
                f'the checkpoint was trained with channel_order={stored!r}, the config says '
                f'{mine!r}. Set channel_order to what the checkpoint was trained with'
            )
        raise ValueError(
            f'the checkpoint was trained on images that are loaded as {stored.upper()}, and with '
            f'channel_order and the data_preprocessor of this config they are loaded as '
            f'{mine.upper()}. Set channel_order (and bgr_to_rgb or to_rgb) to what the checkpoint '
            f'was trained with. If the images of this data set really are loaded in another order, '
            f'remove {prefix + ARRIVES!r} from the state_dict of the checkpoint'
        )

    @staticmethod
    def _check_values(state_dict: Mapping[str, Any], prefix: str, name: str, mine: Tensor) -> None:
        theirs = state_dict.get(prefix + name, mine)
        fits = (
            isinstance(theirs, Tensor)
            and theirs.shape == mine.shape
            and theirs.is_floating_point() == mine.is_floating_point()
            and (theirs.is_floating_point() or theirs.dtype == torch.uint8)
            and bool(theirs[:7].isfinite().all())
        )
        if fits and name == ARRIVES:
            told, order = float(theirs[0]), float(theirs[7])
            fits = told in (0, 1) and (order in (0, 1) or math.isnan(order))
        if not fits:
            what = 'mean, std and order of pixels' if name == ARRIVES else 'a condition'
            raise ValueError(
                f'the checkpoint is damaged, or was edited: {prefix}{name} must be {what}, '
                f'{tuple(mine.shape)} of {mine.dtype}, and is {theirs!r}. Use another checkpoint'
            )
