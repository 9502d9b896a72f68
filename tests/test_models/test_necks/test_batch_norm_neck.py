# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Batch norm of maps, and nothing else."""

import pytest
import torch

from mmaselect.models import BatchNormNeck


def test_normalizes_each_channel_over_the_batch():
    maps = [torch.randn(6, 3, 4, 5) * torch.tensor([1.0, 50.0, 1e-2])[:, None, None] + 7]
    neck = BatchNormNeck([3], affine=False)
    (found,) = neck(maps)
    assert torch.allclose(found.mean((0, 2, 3)), torch.zeros(3), atol=1e-3)
    assert torch.allclose(found.std((0, 2, 3)), torch.ones(3), atol=0.06)
    assert not list(neck.parameters()) and len(list(BatchNormNeck([3]).parameters())) == 2
    # In evaluation an image's features do not depend on the others of its batch.
    neck.eval()
    assert torch.allclose(neck([maps[0][:1]])[0], neck(maps)[0][:1])


def test_bad_arguments():
    with pytest.raises(ValueError, match='one number for each map, got 4'):
        BatchNormNeck(4)
    with pytest.raises(ValueError, match='gives 1 maps, and in_channels is for 2'):
        BatchNormNeck([3, 3])([torch.zeros(2, 3, 4, 4)])
