# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""What the tools in ``tools/analysis_tools`` share: probes, scores, folders of results, figures."""

from importlib.util import find_spec

from mmaselect.install import install_hint

if find_spec('sklearn') is None:
    raise ImportError(
        'mmaselect.analysis fits linear probes with scikit-learn, which is not installed. '
        f'Run: {install_hint("analysis")}, or pip install scikit-learn'
    )
