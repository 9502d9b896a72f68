# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Whether MMDetection can be used here."""

from importlib.util import find_spec


def why_no_detection() -> str:
    """Why MMDetection cannot be used; empty if it can."""
    if find_spec('mmdet') is None:
        return 'MMDetection is not installed'
    if find_spec('mmcv._ext') is None:
        return 'MMCV has no compiled ops, which MMDetection needs'
    return ''
