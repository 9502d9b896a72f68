# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""SiT (arXiv 2401.08740) and REPA (arXiv 2410.06940): DiT's transformer, trained on a flow."""

from __future__ import annotations

from torch import Tensor

from mmaselect.diffusion.families.dit import DiTFamily
from mmaselect.diffusion.families.lookup import register_family

_STEPS = 1000


@register_family
class SiTFamily(DiTFamily):
    """A SiT as its authors publish it; it is told a time that runs from 0, noise, to 1, clean."""

    title = 'SiT'
    original = 'sit'

    def time_input(self, model_time: Tensor) -> Tensor:
        return 1 - model_time / _STEPS


@register_family
class RepaFamily(DiTFamily):
    """A SiT that REPA trained; it is told a time that runs from 0, clean, to 1, noise."""

    title = 'SiT (REPA)'
    original = 'repa'

    def time_input(self, model_time: Tensor) -> Tensor:
        return model_time / _STEPS
