# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Which criteria there are."""

from __future__ import annotations

import inspect
import re

import mmaselect.selection.criteria  # noqa: F401 (registers those of the package)
from mmaselect.registry import CRITERIA
from mmaselect.selection.criteria.base import Criterion


def list_criteria() -> list[str]:
    """Names of the registered criteria, your own included, for ``criterion`` and ``others``.

    Example:
        >>> from mmaselect import list_criteria
        >>> sorted({'CrossSpectrumHFR', 'FisherScore', 'HighFrequencyRatio'} & {*list_criteria()})
        ['CrossSpectrumHFR', 'FisherScore', 'HighFrequencyRatio']
    """
    return sorted(CRITERIA.module_dict)


def criterion_summary(name: str) -> str:
    """The first sentence of a criterion's docstring, and whether it needs labels.

    Args:
        name: One of :func:`list_criteria`.

    Raises:
        KeyError: If it is not registered.

    Example:
        >>> criterion_summary('FisherScore').endswith('(needs labels)')
        True
    """
    kind: type[Criterion] = CRITERIA.module_dict[name]
    text = ' '.join((inspect.getdoc(kind) or '').partition('\n\n')[0].split())
    text = re.sub(r':[a-z]+:`~?([^`]*)`', r'\1', text)  # roles of Sphinx
    first = f'{text.partition(". ")[0].rstrip(".")}.'
    return f'{first} (needs labels)' if kind.needs_labels else first
