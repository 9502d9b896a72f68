# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""What a config names: backbones, necks and heads."""

from mmaselect.openmmlab.compat import check_toolboxes

check_toolboxes()  # before MMEngine is imported: its absence deserves advice

from mmaselect.models.backbones import ASelecTDiT  # noqa: E402
from mmaselect.models.heads import AttentionPoolClsHead  # noqa: E402
from mmaselect.models.necks import BatchNormNeck, SimpleFeaturePyramid  # noqa: E402
from mmaselect.openmmlab.checkpoints import allow_mmengine_objects  # noqa: E402

allow_mmengine_objects()

__all__ = ['ASelecTDiT', 'AttentionPoolClsHead', 'BatchNormNeck', 'SimpleFeaturePyramid']
