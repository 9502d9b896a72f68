# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Criteria: what a timestep is picked by. A pure function and a streaming class of each."""

from mmaselect.selection.criteria.base import Criterion, PerImageCriterion
from mmaselect.selection.criteria.cross_spectrum import CrossSpectrumHFR, cross_spectrum_hfr
from mmaselect.selection.criteria.fisher_score import FisherScore, fisher_score
from mmaselect.selection.criteria.high_frequency_ratio import (
    HighFrequencyRatio,
    high_frequency_ratio,
)
from mmaselect.selection.criteria.paper_hfr import PaperHFR, paper_hfr
from mmaselect.selection.criteria.view_pairs import (
    DenseCorrespondence,
    InstanceDiscrimination,
    InstanceRetrieval,
    InstanceSensitivity,
    ViewAlignment,
    ViewPairCriterion,
)

__all__ = [
    'Criterion',
    'CrossSpectrumHFR',
    'DenseCorrespondence',
    'FisherScore',
    'HighFrequencyRatio',
    'InstanceDiscrimination',
    'InstanceRetrieval',
    'InstanceSensitivity',
    'PaperHFR',
    'PerImageCriterion',
    'ViewAlignment',
    'ViewPairCriterion',
    'cross_spectrum_hfr',
    'fisher_score',
    'high_frequency_ratio',
    'paper_hfr',
]
