# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""What a config names: backbones, necks and heads."""

from mmaselect.models.backbones import ASelecTDiT
from mmaselect.models.heads import AttentionPoolClsHead
from mmaselect.models.necks import BatchNormNeck, SimpleFeaturePyramid
from mmaselect.openmmlab.checkpoints import allow_mmengine_objects

allow_mmengine_objects()

__all__ = ['ASelecTDiT', 'AttentionPoolClsHead', 'BatchNormNeck', 'SimpleFeaturePyramid']
