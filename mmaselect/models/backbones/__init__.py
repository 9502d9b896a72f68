# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
from mmaselect.models.backbones.aselect_dit import ASelecTDiT

__all__ = ['ASelecTDiT']
