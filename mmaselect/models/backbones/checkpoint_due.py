# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Whether a checkpoint will be read right after a model's ``init_weights``."""

from __future__ import annotations

import ast

from mmengine.logging import MessageHub


def checkpoint_is_due() -> bool:
    """Whether the MMEngine Runner that is about to train loads a checkpoint after ``init_weights``.

    MMEngine calls ``init_weights`` first and reads the checkpoint then, and ``init_weights`` is
    told nothing of it. The Runner's config is in its message hub, though. (Where
    :class:`~mmaselect.engine.SelectionHook` is in use, it says so, and this is not needed; a Runner
    that was made without a config says nothing.)
    """
    info = MessageHub.get_current_instance().runtime_info
    # 'iter' is there from the beginning of a training on: that Runner has read its checkpoint.
    if 'cfg' not in info or 'iter' in info:
        return False
    settings = {}
    for node in ast.parse(info['cfg']).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            if name in ('load_from', 'resume') and isinstance(node.value, ast.Constant):
                settings[name] = node.value.value
    return any(settings.values())
