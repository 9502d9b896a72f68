# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Which timestep to read: criteria, the sweep over a grid, its result. Knows nothing of configs."""

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
