# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Block and feature that are left open, on the faces of other libraries."""

from pathlib import Path

import pytest
import torch

from mmaselect import TransformersBackbone, select
from mmaselect.apis.sklearn import DiTFeatures

SELECTION = dict(timesteps=[0, 300], image_size=32, num_images=12)


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """All faces find the same selection."""
    monkeypatch.setenv('MMASELECT_CACHE', str(tmp_path / 'cache'))


def test_transformers_reads_the_picked_blocks(tiny_dit, photos, cached):
    model = TransformersBackbone(
        tiny_dit, 'auto', out_indices='auto:2', feature='auto', calibration=photos,
        selection=SELECTION,
    )  # fmt: skip
    wanted = select(
        tiny_dit, photos, blocks='auto:2', feature='auto', selection=SELECTION, progress=False
    )
    assert list(model.dit.keys) == wanted.cells and model.timestep == wanted.timestep
    assert model.out_features == [f'block{block}' for block in wanted.blocks]
    maps = model(torch.zeros(1, 3, 32, 32)).feature_maps
    assert [one.shape[1] for one in maps] == model.channels and len(maps) == 2


def test_sklearn_reads_the_picked_place(tiny_dit, photos, cached):
    images = sorted(str(path) for path in Path(photos).iterdir())
    model = DiTFeatures(tiny_dit, 'auto', blocks='auto', feature='auto', selection=SELECTION)
    vectors = model.fit(images).transform(images[:3])
    wanted = select(
        tiny_dit, images, blocks='auto', feature='auto', selection=SELECTION, progress=False
    )
    ((block, feature),) = wanted.cells
    named = DiTFeatures(tiny_dit, wanted.timestep, blocks=[block], feature=feature)
    assert (vectors == named.fit(images).transform(images[:3])).all()
