# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
from mmaselect.engine.hooks import (
    IterationSeedHook,
    PlainCheckpointHook,
    SaveOnStopHook,
    SelectionHook,
)

__all__ = ['IterationSeedHook', 'PlainCheckpointHook', 'SaveOnStopHook', 'SelectionHook']
