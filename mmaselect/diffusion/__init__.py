# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""The frozen generator. Knows torch and diffusers; knows nothing of OpenMMLab or of selection."""

from mmaselect.diffusion.families import (
    FEATURES,
    Family,
    family_of,
    known_families,
    register_family,
)
from mmaselect.diffusion.frozen_dit import FrozenDiT, TapKey
from mmaselect.diffusion.loading import PipelineSource, parse_dtype, sample_values
from mmaselect.diffusion.model_source import ModelSource
from mmaselect.diffusion.process import (
    DDPMProcess,
    FlowMatchingProcess,
    ForwardProcess,
    NoiseLevel,
    build_process,
    draw_noise,
    noise_seed,
)

__all__ = [
    'FEATURES',
    'DDPMProcess',
    'Family',
    'FlowMatchingProcess',
    'ForwardProcess',
    'FrozenDiT',
    'ModelSource',
    'NoiseLevel',
    'PipelineSource',
    'TapKey',
    'build_process',
    'draw_noise',
    'family_of',
    'known_families',
    'noise_seed',
    'parse_dtype',
    'register_family',
    'sample_values',
]
