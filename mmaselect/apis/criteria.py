# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Which criteria there are."""

from __future__ import annotations

import mmaselect.selection.criteria  # noqa: F401 (registers those of the package)
from mmaselect.registry import CRITERIA


def list_criteria() -> list[str]:
    """Names of the registered criteria, your own included, for ``criterion`` and ``others``.

    Example:
        >>> from mmaselect import list_criteria
        >>> sorted({'CrossSpectrumHFR', 'FisherScore', 'HighFrequencyRatio'} & {*list_criteria()})
        ['CrossSpectrumHFR', 'FisherScore', 'HighFrequencyRatio']
    """
    return sorted(CRITERIA.module_dict)
