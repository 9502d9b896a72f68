# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""How pixels arrive at a backbone, from the ``data_preprocessor`` of the model that it is in.

A backbone is built without a word of its model. PyTorch says when a module is put into another,
though, and that is when the model's ``data_preprocessor`` is looked at.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

#: The attribute of MMEngine's ``BaseModel``.
NAME = 'data_preprocessor'


@dataclass(frozen=True)
class Arrival:
    """How pixels leave a ``data_preprocessor``.

    Attributes:
        mean: Mean that it subtracts from each channel, in 0..255 units.
        std: Standard deviation that it divides by.
        order: ``'rgb'`` if it turns channels around (image files are loaded as BGR); None if it
            leaves them as they are loaded.
        name: Its class.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    order: str | None
    name: str


def arrival(preprocessor: nn.Module) -> Arrival | None:
    """How pixels leave a ``data_preprocessor`` of MMEngine and the toolboxes.

    Args:
        preprocessor: The module.

    Returns:
        Arrival | None: None if it does not say, as one that does not normalize by itself.
    """
    normalizes = getattr(preprocessor, '_enable_normalize', None)
    if normalizes is None:
        return None
    mean, std = (0.0,) * 3, (1.0,) * 3
    if normalizes:
        mean, std = (_three(getattr(preprocessor, name)) for name in ('mean', 'std'))
    turns = getattr(preprocessor, '_channel_conversion', getattr(preprocessor, 'to_rgb', False))
    return Arrival(mean, std, 'rgb' if turns else None, type(preprocessor).__name__)


def _three(values: Any) -> tuple[float, float, float]:
    listed = values.flatten().tolist()
    red, green, blue = listed * 3 if len(listed) == 1 else listed
    return red, green, blue


class Adopts(nn.Module):
    """A module that wants to know its model's ``data_preprocessor``."""

    def adopt_preprocessor(self, preprocessor: nn.Module) -> None:
        """Called when it is put into a model, and when the model's is replaced."""
        raise NotImplementedError


#: Modules that one of ours is in, with these.
_holders: weakref.WeakKeyDictionary[nn.Module, weakref.WeakSet[Adopts]] = (
    weakref.WeakKeyDictionary()
)


def _registered(module: nn.Module, name: str, submodule: nn.Module | None) -> None:
    if submodule is None:
        return
    preprocessor: Any = submodule
    if name == NAME:
        inside = list(_holders.get(module, ()))
    else:
        inside = [submodule] if isinstance(submodule, Adopts) else list(_holders.get(submodule, ()))
        if not inside:
            return
        _holders.setdefault(module, weakref.WeakSet()).update(inside)
        # Not by getattr, which a module that is still being built may answer by an error.
        preprocessor = module._modules.get(NAME)
    if isinstance(preprocessor, nn.Module):
        for each in inside:
            each.adopt_preprocessor(preprocessor)


register_module_module_registration_hook(_registered)
