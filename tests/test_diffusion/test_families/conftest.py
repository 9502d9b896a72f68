# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
import functools
import sys
from pathlib import Path

import pytest
import torch

from mmaselect.diffusion import FrozenDiT, parse_dtype

sys.path.insert(0, str(Path(__file__).parent))  # `from harness import FamilyProof`


@pytest.fixture(scope='session')
def _condition_cache(tmp_path_factory):
    return tmp_path_factory.mktemp('cache')


@pytest.fixture(autouse=True)
def _isolated(_condition_cache, monkeypatch):
    """As for all tests, but prompts stay embedded from one test to the next: half the time."""
    monkeypatch.setenv('MMASELECT_CACHE', str(_condition_cache))
    torch.manual_seed(0)


@pytest.fixture(scope='session')
def saved(tmp_path_factory):
    """The folder with the tiny pipeline of a ``FamilyProof``, to read: it is saved once."""

    @functools.cache
    def save(proof):
        folder = tmp_path_factory.mktemp(proof.__name__)
        torch.manual_seed(0)
        proof().build(folder)
        return folder

    return save


@pytest.fixture(scope='class')
def folder(request, saved):
    """The tiny pipeline of this class."""
    return saved(request.cls)


@pytest.fixture(scope='class')
def stock(request, folder):
    """The same as stock diffusers loads it, by the name of a dtype."""

    @functools.cache
    def load(dtype):
        pipeline = request.cls().stock_pipeline(folder, torch_dtype=parse_dtype(dtype))
        # torch takes another way through a product, and rounds otherwise, where a weight wants a
        # gradient, no_grad or not (`should_fold` in its LinearAlgebra.cpp).
        # Our own prompts are embedded by encoders as diffusers loads them, so those stay.
        pipeline.transformer.requires_grad_(False)
        if hasattr(pipeline, 'vae'):
            pipeline.vae.requires_grad_(False)
        return pipeline

    return load


@pytest.fixture(scope='class')
def pipeline(stock):
    """In fp32."""
    return stock('fp32')


@pytest.fixture(scope='class')
def load(request, folder):
    """``FrozenDiT.from_pretrained`` of the same."""
    return functools.partial(FrozenDiT.from_pretrained, folder, condition=request.cls.condition)
