# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Necks that the toolboxes lack."""

from mmaselect.models.necks.batch_norm_neck import BatchNormNeck
from mmaselect.models.necks.simple_feature_pyramid import SimpleFeaturePyramid

__all__ = ['BatchNormNeck', 'SimpleFeaturePyramid']
