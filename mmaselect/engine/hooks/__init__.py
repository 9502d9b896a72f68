# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
from mmaselect.engine.hooks.activation_checkpointing_hook import ActivationCheckpointingHook
from mmaselect.engine.hooks.frozen_cache_hook import FrozenCacheHook
from mmaselect.engine.hooks.selection_hook import SelectionHook

__all__ = [
    'ActivationCheckpointingHook',
    'FrozenCacheHook',
    'SelectionHook',
]
