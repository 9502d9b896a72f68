# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""The package's own registries, children of MMEngine's roots (scope ``mmaselect``).

A config of any toolbox reaches a class of ours as ``type='mmaselect.ASelecTDiT'`` once
``custom_imports = dict(imports=['mmaselect'])`` (or any import of the package) has run.
"""

from mmengine.registry import DATA_SAMPLERS as MMENGINE_DATA_SAMPLERS
from mmengine.registry import DATASETS as MMENGINE_DATASETS
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import METRICS as MMENGINE_METRICS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import STRATEGIES as MMENGINE_STRATEGIES
from mmengine.registry import TRANSFORMS as MMENGINE_TRANSFORMS
from mmengine.registry import Registry

from mmaselect.registry import SCOPE

MODELS = Registry('model', parent=MMENGINE_MODELS, scope=SCOPE, locations=['mmaselect.models'])
DATASETS = Registry(
    'dataset', parent=MMENGINE_DATASETS, scope=SCOPE, locations=['mmaselect.datasets']
)
DATA_SAMPLERS = Registry(
    'data sampler',
    parent=MMENGINE_DATA_SAMPLERS,
    scope=SCOPE,
    locations=['mmaselect.datasets'],
)
TRANSFORMS = Registry(
    'transform', parent=MMENGINE_TRANSFORMS, scope=SCOPE, locations=['mmaselect.datasets']
)
HOOKS = Registry(
    'hook',
    parent=MMENGINE_HOOKS,
    scope=SCOPE,
    locations=['mmaselect.engine', 'mmaselect.launch.hooks'],
)
STRATEGIES = Registry(
    'strategy',
    parent=MMENGINE_STRATEGIES,
    scope=SCOPE,
    locations=['mmaselect.launch.strategies'],
)
METRICS = Registry('metric', parent=MMENGINE_METRICS, scope=SCOPE, locations=['mmaselect.engine'])

__all__ = [
    'DATASETS',
    'DATA_SAMPLERS',
    'HOOKS',
    'METRICS',
    'MODELS',
    'SCOPE',
    'STRATEGIES',
    'TRANSFORMS',
]
