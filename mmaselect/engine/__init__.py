# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Hooks of training: the pick, its report and the cache of the frozen part."""

from mmaselect.openmmlab.compat import check_toolboxes

check_toolboxes()  # before MMEngine is imported: its absence deserves advice

from mmaselect.engine.hooks import (  # noqa: E402
    ActivationCheckpointingHook,
    FrozenCacheHook,
    SelectionHook,
)

__all__ = [
    'ActivationCheckpointingHook',
    'FrozenCacheHook',
    'SelectionHook',
]
