# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
import sys
from pathlib import Path

import pytest
import torch

from mmaselect.diffusion import FrozenDiT

sys.path.insert(0, str(Path(__file__).parent))  # `from harness import FamilyProof`

from harness import aligned


@pytest.fixture(autouse=True, scope='session')
def _condition_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('MMASELECT_CACHE', str(tmp_path_factory.mktemp('cache')))
        yield


@pytest.fixture(scope='class')
def folder(request, tmp_path_factory):
    """The tiny pipeline of a ``FamilyProof``."""
    folder = tmp_path_factory.mktemp(request.cls.__name__)
    torch.manual_seed(0)
    request.cls().build(folder)
    return folder


@pytest.fixture(scope='class')
def pipeline(request, folder):
    """The same as stock diffusers loads it."""
    pipeline = request.cls().stock_pipeline(folder)
    for part in (pipeline.transformer, pipeline.vae):
        aligned(part)
    return pipeline


@pytest.fixture(scope='class')
def load(request, folder):
    """``FrozenDiT.from_pretrained`` of the same."""

    def load(**kwargs):
        return aligned(
            FrozenDiT.from_pretrained(folder, **{'condition': request.cls.condition, **kwargs})
        )

    return load
