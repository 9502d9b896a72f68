# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""``randomness.deterministic`` of a config, on an accelerator."""

import os

import torch
from mmengine.config import Config


def prepare_determinism(config: Config) -> None:
    """Set the variable that cuBLAS reads when CUDA starts, where a config asks for determinism.

    Args:
        config: The run's config, before anything is on an accelerator.
    """
    if (config.get('randomness') or {}).get('deterministic'):
        os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')


def let_the_rest_warn() -> None:
    """Have operations without a deterministic kernel warn, where they would end the run.

    Adaptive pooling (UPerHead) and histc (IoUMetric) have none on CUDA. MMEngine sets PyTorch's
    switch without ``warn_only``: when a Runner is built, and once more when it resumes.
    """
    if torch.are_deterministic_algorithms_enabled():
        torch.use_deterministic_algorithms(True, warn_only=True)
