# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""What the tools in ``tools/analysis_tools`` share: probes, scores, folders of results, figures."""

from importlib.util import find_spec

if find_spec('sklearn') is None:
    raise ImportError(
        'mmaselect.analysis fits linear probes with scikit-learn, which is not installed. '
        "Run: pip install 'mmaselect[analysis]' (or pip install scikit-learn)"
    )
