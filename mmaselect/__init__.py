# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Diffusion transformers as OpenMMLab backbones, read at the timestep that A-SelecT picks.

Importing the package makes its registries known to MMEngine, so that a config with
``custom_imports = dict(imports=['mmaselect'])`` can name ``mmaselect.ASelecTDiT``.
"""

# First of all: says which toolboxes are missing, and how to get them.
from mmaselect.utils import map_config_scopes  # isort: skip
from mmaselect import registry  # noqa: F401 (its import is what makes it known)
from mmaselect.version import __version__

# Bases such as 'mmseg::...' are then found with either distribution of OpenMMLab.
map_config_scopes()

__all__ = ['__version__']
