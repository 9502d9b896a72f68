# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""The same things from Python, without a config."""

from importlib.util import find_spec

from mmaselect.apis.criteria import list_criteria
from mmaselect.apis.feature_files import StoredFeatures, load_features, save_features
from mmaselect.apis.features import FeatureExtractor, FeatureInfo
from mmaselect.apis.huggingface import TransformersBackbone
from mmaselect.apis.selection import select, select_timestep
from mmaselect.apis.timm import FeaturesOnly

__all__ = [
    'FeatureExtractor',
    'FeatureInfo',
    'FeaturesOnly',
    'StoredFeatures',
    'TransformersBackbone',
    'list_criteria',
    'load_features',
    'save_features',
    'select',
    'select_timestep',
]

if find_spec('transformers') is not None:  # diffusers has imported it already
    from mmaselect.apis.auto_backbone import register

    register()
