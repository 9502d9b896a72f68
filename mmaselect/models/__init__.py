# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""What a config names: backbones and heads."""

from mmaselect.models.backbones import ASelecTDiT
from mmaselect.models.heads import AttentionPoolClsHead

__all__ = ['ASelecTDiT', 'AttentionPoolClsHead']
