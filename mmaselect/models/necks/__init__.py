# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Necks that the toolboxes lack."""

from mmaselect.models.necks.batch_norm_neck import BatchNormNeck

__all__ = ['BatchNormNeck']
