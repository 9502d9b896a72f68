# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""The bridge to OpenMMLab: what is installed, registries, adapters of data sets, checkpoints."""

from mmaselect.openmmlab.compat import (
    TOOLBOXES,
    check_toolboxes,
    installed_distributions,
    is_installed,
    leave_out_broken_multimodal,
    map_config_scopes,
    multimodal_is_broken,
)
from mmaselect.registry import PLUGINS

__all__ = [
    'TOOLBOXES',
    'check_toolboxes',
    'connect',
    'installed_distributions',
    'is_installed',
    'leave_out_broken_multimodal',
    'map_config_scopes',
    'multimodal_is_broken',
]


def connect() -> None:
    """Make the package known to MMEngine: its registries, its configs, its messages, its pickles.

    Raises:
        ImportError: If two distributions of OpenMMLab overwrite each other.
    """
    check_toolboxes()
    from mmaselect.openmmlab import registries  # noqa: F401 (its import is what makes it known)
    from mmaselect.openmmlab.messages import forward_messages
    from mmaselect.openmmlab.pickled_files import guard_pickles

    # Bases such as 'mmseg::...' are then found with either distribution of OpenMMLab.
    map_config_scopes()
    # Before anything imports MMPretrain's models.
    leave_out_broken_multimodal()
    forward_messages()
    guard_pickles()
    PLUGINS['dataset images'] = 'mmaselect.openmmlab.dataset_images:dataset_images'
