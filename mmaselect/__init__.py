# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Diffusion transformers as OpenMMLab backbones, read at the timestep that A-SelecT picks."""

from mmaselect.version import __version__

__all__ = ['__version__']
