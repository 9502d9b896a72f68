# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Diffusion transformers as OpenMMLab backbones, read at the timestep that A-SelecT picks.

Importing the package makes its registries known to MMEngine, so that a config with
``custom_imports = dict(imports=['mmaselect'])`` can name ``mmaselect.ASelecTDiT``. It imports no
torch: each name below is looked up when it is first asked for (PEP 562).
"""

from importlib import import_module
from typing import TYPE_CHECKING

from mmaselect.openmmlab import connect, is_installed
from mmaselect.version import __version__

if TYPE_CHECKING:
    from mmaselect.apis import (
        FeatureExtractor,
        FeaturesOnly,
        TransformersBackbone,
        list_criteria,
        select,
        select_timestep,
    )
    from mmaselect.diffusion import FrozenDiT
    from mmaselect.model_zoo import list_models, model_info
    from mmaselect.models import ASelecTDiT
    from mmaselect.selection import SelectionResult

#: Public name to the module that has it. The imports above say the same to type checkers.
_PUBLIC = {
    'ASelecTDiT': 'mmaselect.models',
    'FeatureExtractor': 'mmaselect.apis',
    'FeaturesOnly': 'mmaselect.apis',
    'FrozenDiT': 'mmaselect.diffusion',
    'SelectionResult': 'mmaselect.selection',
    'TransformersBackbone': 'mmaselect.apis',
    'list_criteria': 'mmaselect.apis',
    'list_models': 'mmaselect.model_zoo',
    'model_info': 'mmaselect.model_zoo',
    'select': 'mmaselect.apis',
    'select_timestep': 'mmaselect.apis',
}

__all__ = [
    'ASelecTDiT',
    'FeatureExtractor',
    'FeaturesOnly',
    'FrozenDiT',
    'SelectionResult',
    'TransformersBackbone',
    '__version__',
    'list_criteria',
    'list_models',
    'model_info',
    'select',
    'select_timestep',
]


def __getattr__(name: str) -> object:
    if name not in _PUBLIC:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    value = getattr(import_module(_PUBLIC[name]), name)
    globals()[name] = value  # found without this function the next time
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


# All but what a config names works without OpenMMLab.
if is_installed():
    connect()
