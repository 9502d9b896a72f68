# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Hooks that harden any run of MMEngine."""

from mmaselect.launch.hooks.iteration_seed_hook import IterationSeedHook
from mmaselect.launch.hooks.plain_checkpoint_hook import PlainCheckpointHook
from mmaselect.launch.hooks.save_on_stop_hook import SaveOnStopHook

__all__ = ['IterationSeedHook', 'PlainCheckpointHook', 'SaveOnStopHook']
