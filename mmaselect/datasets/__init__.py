# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Data sets that the toolboxes lack, and augmentation that a resumed run repeats."""

from mmaselect.datasets.camvid import CamVidDataset
from mmaselect.datasets.holdout import hold_out, hold_out_indices
from mmaselect.datasets.nabirds import NABirds
from mmaselect.datasets.photo_collage import PhotoCollageDataset
from mmaselect.datasets.seeded import PlaceSampler, SeededDataset
from mmaselect.datasets.stanford_dogs import StanfordDogs

__all__ = [
    'CamVidDataset',
    'NABirds',
    'PhotoCollageDataset',
    'PlaceSampler',
    'SeededDataset',
    'StanfordDogs',
    'hold_out',
    'hold_out_indices',
]
