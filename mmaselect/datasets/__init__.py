# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Data sets that the toolboxes lack, and augmentation that a resumed run repeats."""

from mmaselect.openmmlab.compat import check_toolboxes

check_toolboxes()  # before MMEngine is imported: its absence deserves advice

from mmaselect.openmmlab.messages import without_chatter  # noqa: E402

with without_chatter():
    import mmpretrain.datasets  # noqa: F401
    import mmseg.datasets  # noqa: F401

from mmaselect.datasets.camvid import CamVidDataset  # noqa: E402
from mmaselect.datasets.holdout import hold_out, hold_out_indices  # noqa: E402
from mmaselect.datasets.nabirds import NABirds  # noqa: E402
from mmaselect.datasets.noisy_digits import NoisyDigitsDataset  # noqa: E402
from mmaselect.datasets.photo_collage import PhotoCollageDataset  # noqa: E402
from mmaselect.datasets.seeded import PlaceSampler, SeededDataset  # noqa: E402
from mmaselect.datasets.stanford_dogs import StanfordDogs  # noqa: E402

__all__ = [
    'CamVidDataset',
    'NABirds',
    'NoisyDigitsDataset',
    'PhotoCollageDataset',
    'PlaceSampler',
    'SeededDataset',
    'StanfordDogs',
    'hold_out',
    'hold_out_indices',
]
