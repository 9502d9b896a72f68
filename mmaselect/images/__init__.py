# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""What a picture is, for everybody: where it comes from, how it is read, at what size.

Knows neither selection nor models, nor OpenMMLab. Images of a toolbox's dataset are in
:mod:`mmaselect.openmmlab.dataset_images`.
"""

from mmaselect.images.calibration import CalibrationBatch, CalibrationSet
from mmaselect.images.reading import (
    CANVAS,
    UnreadableImageError,
    as_rgb,
    load_rgb,
    naming_image,
    open_image,
    resize_and_crop,
    to_model_range,
)
from mmaselect.images.sources import (
    IMAGE_SUFFIXES,
    ImageArrays,
    ImageFolder,
    ImageSource,
    find_image_files,
)

__all__ = [
    'CANVAS',
    'IMAGE_SUFFIXES',
    'CalibrationBatch',
    'CalibrationSet',
    'ImageArrays',
    'ImageFolder',
    'ImageSource',
    'UnreadableImageError',
    'as_rgb',
    'find_image_files',
    'load_rgb',
    'naming_image',
    'open_image',
    'resize_and_crop',
    'to_model_range',
]
