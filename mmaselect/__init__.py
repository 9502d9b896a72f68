# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Diffusion transformers as OpenMMLab backbones, read at the timestep that A-SelecT picks.

Importing the package makes its registries known to MMEngine, so that a config with
``custom_imports = dict(imports=['mmaselect'])`` can name ``mmaselect.ASelecTDiT``.
"""

from mmaselect import utils  # noqa: F401 (first: says which toolboxes are missing, and how to get them)

from mmaselect import registry  # noqa: F401 isort: skip
from mmaselect.version import __version__

__all__ = ['__version__']
