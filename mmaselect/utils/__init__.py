# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""What the tools share: the installed toolboxes, configs, launching."""

from .compat import (
    TOOLBOXES,
    check_toolboxes,
    installed_distributions,
    leave_out_broken_multimodal,
    map_config_scopes,
    multimodal_is_broken,
)

check_toolboxes()  # before MMEngine is imported: its absence deserves advice

from .config import get_toolbox, load_config  # noqa: E402

__all__ = [
    'TOOLBOXES',
    'check_toolboxes',
    'get_toolbox',
    'installed_distributions',
    'leave_out_broken_multimodal',
    'load_config',
    'map_config_scopes',
    'multimodal_is_broken',
]
