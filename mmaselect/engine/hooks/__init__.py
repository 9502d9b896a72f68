# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
from mmaselect.engine.hooks.activation_checkpointing_hook import ActivationCheckpointingHook
from mmaselect.engine.hooks.frozen_cache_hook import FrozenCacheHook
from mmaselect.engine.hooks.iteration_seed_hook import IterationSeedHook
from mmaselect.engine.hooks.plain_checkpoint_hook import PlainCheckpointHook
from mmaselect.engine.hooks.save_on_stop_hook import SaveOnStopHook
from mmaselect.engine.hooks.selection_hook import SelectionHook

__all__ = [
    'ActivationCheckpointingHook',
    'FrozenCacheHook',
    'IterationSeedHook',
    'PlainCheckpointHook',
    'SaveOnStopHook',
    'SelectionHook',
]
