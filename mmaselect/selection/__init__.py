# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Which timestep to read: criteria, the sweep over a grid, its result. Knows nothing of configs.

Each name below is looked up when it is first asked for (PEP 562), so that the options and their
flags are there without PyTorch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmaselect.images import (
        CalibrationBatch,
        CalibrationSet,
        ImageArrays,
        ImageFolder,
        ImageSource,
    )
    from mmaselect.images.views import ViewOptions
    from mmaselect.selection.criteria import (
        Criterion,
        CrossSpectrumHFR,
        DenseCorrespondence,
        FisherScore,
        HighFrequencyRatio,
        InstanceDiscrimination,
        InstanceRetrieval,
        InstanceSensitivity,
        PaperHFR,
        ViewAlignment,
    )
    from mmaselect.selection.defaults import DEFAULT_CRITERION, DEFAULT_NUM_IMAGES, DEFAULT_OTHERS
    from mmaselect.selection.grid import DEFAULT_GRID, parse_timesteps
    from mmaselect.selection.options import SelectionOptions
    from mmaselect.selection.result import Curve, CurvePoint, SelectionCache, SelectionResult
    from mmaselect.selection.sweep import Sweep

#: Module to the public names that it has. The imports above say the same to type checkers.
_PUBLIC = {
    'mmaselect.images': (
        'CalibrationBatch', 'CalibrationSet', 'ImageArrays', 'ImageFolder', 'ImageSource',
    ),
    'mmaselect.images.views': ('ViewOptions',),
    'mmaselect.selection.criteria': (
        'Criterion', 'CrossSpectrumHFR', 'DenseCorrespondence', 'FisherScore', 'HighFrequencyRatio',
        'InstanceDiscrimination', 'InstanceRetrieval', 'InstanceSensitivity', 'PaperHFR',
        'ViewAlignment',
    ),
    'mmaselect.selection.defaults': ('DEFAULT_CRITERION', 'DEFAULT_NUM_IMAGES', 'DEFAULT_OTHERS'),
    'mmaselect.selection.grid': ('DEFAULT_GRID', 'parse_timesteps'),
    'mmaselect.selection.options': ('SelectionOptions',),
    'mmaselect.selection.result': ('Curve', 'CurvePoint', 'SelectionCache', 'SelectionResult'),
    'mmaselect.selection.sweep': ('Sweep',),
}  # fmt: skip

__all__ = [
    'DEFAULT_CRITERION',
    'DEFAULT_GRID',
    'DEFAULT_NUM_IMAGES',
    'DEFAULT_OTHERS',
    'CalibrationBatch',
    'CalibrationSet',
    'Criterion',
    'CrossSpectrumHFR',
    'Curve',
    'CurvePoint',
    'DenseCorrespondence',
    'FisherScore',
    'HighFrequencyRatio',
    'ImageArrays',
    'ImageFolder',
    'ImageSource',
    'InstanceDiscrimination',
    'InstanceRetrieval',
    'InstanceSensitivity',
    'PaperHFR',
    'SelectionCache',
    'SelectionOptions',
    'SelectionResult',
    'Sweep',
    'ViewAlignment',
    'ViewOptions',
    'parse_timesteps',
]


def __getattr__(name: str) -> Any:
    for module, names in _PUBLIC.items():
        if name in names:
            value = getattr(import_module(module), name)
            globals()[name] = value  # found without this function the next time
            return value
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
