# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Which timestep to read: criteria, the sweep over a grid, its result. Knows nothing of configs."""

from mmaselect.images import (
    CalibrationBatch,
    CalibrationSet,
    ImageArrays,
    ImageFolder,
    ImageSource,
)
from mmaselect.selection.criteria import (
    Criterion,
    CrossSpectrumHFR,
    FisherScore,
    HighFrequencyRatio,
)
from mmaselect.selection.defaults import DEFAULT_CRITERION, DEFAULT_NUM_IMAGES, DEFAULT_OTHERS
from mmaselect.selection.grid import DEFAULT_GRID, parse_timesteps
from mmaselect.selection.plot import save_selection, selection_figure
from mmaselect.selection.result import Curve, CurvePoint, SelectionCache, SelectionResult
from mmaselect.selection.sweep import Sweep

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
    'FisherScore',
    'HighFrequencyRatio',
    'ImageArrays',
    'ImageFolder',
    'ImageSource',
    'SelectionCache',
    'SelectionResult',
    'Sweep',
    'parse_timesteps',
    'save_selection',
    'selection_figure',
]
