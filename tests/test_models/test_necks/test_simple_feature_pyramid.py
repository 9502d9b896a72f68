# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""ViTDet's simple feature pyramid."""

import pytest
import torch

from mmaselect.models import SimpleFeaturePyramid


@pytest.mark.parametrize(
    ('rescales', 'sizes'),
    [
        ((4, 2, 1, 0.5), [(32, 48), (16, 24), (8, 12), (4, 6), (2, 3)]),
        ((1, 0.5, 0.25, 0.125), [(8, 12), (4, 6), (2, 3), (1, 1), (1, 1)]),
    ],
)
def test_levels_have_the_strides_of_detectors(rescales, sizes):
    neck = SimpleFeaturePyramid(16, out_channels=8, rescales=rescales)
    levels = neck([torch.randn(2, 16, 8, 12)])
    assert [tuple(level.shape) for level in levels] == [(2, 8, *size) for size in sizes]
    # Layer norm over the channels ends each level; the last is every second position of the fourth.
    assert torch.allclose(levels[0].mean(1), torch.zeros(1), atol=1e-5)
    assert torch.equal(levels[4], levels[3][:, :, ::2, ::2])
    sum(level.square().mean() for level in levels[:4]).backward()
    assert all(parameter.grad is not None for parameter in neck.parameters())


def test_enlarged_as_the_paper_does():
    """Two transposed convolutions with norm and GELU between them, each halving the channels."""
    quadruple, double, same, half = SimpleFeaturePyramid(16, out_channels=8).levels
    kinds = ['ConvTranspose2d', 'LayerNorm2d', 'GELU', 'ConvTranspose2d']
    last = ['Conv2d', 'LayerNorm2d', 'Conv2d', 'LayerNorm2d']
    assert [type(layer).__name__ for layer in quadruple] == kinds + last
    assert [type(layer).__name__ for layer in double] == ['ConvTranspose2d', *last]
    assert [type(layer).__name__ for layer in same] == last
    assert [type(layer).__name__ for layer in half] == ['MaxPool2d', *last]
    assert (quadruple[0].out_channels, quadruple[3].out_channels) == (8, 4)


def test_several_maps_are_joined():
    neck = SimpleFeaturePyramid([4, 6], out_channels=8, rescales=[1], num_outs=1).eval()
    maps = [torch.randn(1, 4, 3, 3), torch.randn(1, 6, 3, 3)]
    whole = SimpleFeaturePyramid(10, out_channels=8, rescales=[1], num_outs=1).eval()
    whole.load_state_dict(neck.state_dict())
    assert torch.equal(neck(maps)[0], whole([torch.cat(maps, 1)])[0])
    with pytest.raises(ValueError, match=r'gives maps of \[6, 4\] channels, .* for \[4, 6\]'):
        neck(maps[::-1])


@pytest.mark.parametrize('rescales', [(4, 3), (1, 2), (2, 2), (), 4, (0,), (-1,), ('a',)])
def test_bad_scales(rescales):
    with pytest.raises(ValueError, match='rescales must be different powers of 2'):
        SimpleFeaturePyramid(4, rescales=rescales)


def test_bad_numbers():
    with pytest.raises(ValueError, match='in_channels'):
        SimpleFeaturePyramid([])
    with pytest.raises(ValueError, match='num_outs'):
        SimpleFeaturePyramid(4, num_outs=3)
