# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""The range and the form of pixels, on every face."""

import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from mmaselect import FeatureExtractor, select_timestep
from mmaselect.apis import FeaturesOnly, TransformersBackbone
from mmaselect.images.inputs import check_value_range, list_images, to_pixels

PHOTO = np.random.default_rng(0).integers(0, 256, (32, 40, 3), dtype=np.uint8)
UNIT = torch.from_numpy(PHOTO).permute(2, 0, 1).float() / 255


@pytest.mark.parametrize(
    ('image', 'value_range'),
    [
        (UNIT, (0, 1)),
        (UNIT * 255, [0, 255]),
        (UNIT * 2 - 1, None),
        (UNIT - 0.5, (-0.5, 0.5)),
        (torch.from_numpy(PHOTO).permute(2, 0, 1), (0, 1)),
        (PHOTO / 255.0, (0, 255)),
        (PHOTO, None),
    ],
)
def test_all_forms_of_a_picture_are_one(image, value_range):
    pixels = to_pixels(image, value_range=check_value_range(value_range))
    assert torch.allclose(pixels, UNIT * 2 - 1, atol=1e-6)


def test_a_grey_tensor_is_grey():
    assert torch.equal(to_pixels(UNIT[:1] * 2 - 1), (UNIT[:1] * 2 - 1).expand(3, -1, -1))
    with pytest.raises(ValueError, match=r'or \(1, H, W\), grey'):
        to_pixels(torch.zeros(2, 32, 32))


@pytest.mark.parametrize('value_range', [1, (0,), (1, 0), 'unit', (0, float('inf'))])
def test_a_wrong_range(value_range):
    with pytest.raises(ValueError, match='value_range must'):
        check_value_range(value_range)


def test_pixels_in_another_range_are_refused():
    with pytest.raises(ValueError, match=r'must have -1 to 1.* say its value_range'):
        to_pixels(UNIT * 255)
    with pytest.raises(ValueError, match=r'must have 0 to 1, got 0 to 255'):
        to_pixels(UNIT * 255, value_range=(0, 1))


@pytest.fixture
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        yield


def test_the_extractor_says_what_it_takes_a_tensor_for(tiny_dit):
    extract = FeatureExtractor(tiny_dit, 50, blocks=[2], device='cpu')
    expected = extract(PHOTO)[2, 'query']
    with pytest.warns(UserWarning, match=r'say value_range=\(0, 1\)'):
        assert not torch.allclose(extract(UNIT)[2, 'query'], expected, atol=0.1)
    unit = FeatureExtractor(tiny_dit, 50, blocks=[2], device='cpu', value_range=(0, 1))
    assert torch.allclose(unit([UNIT])[2, 'query'], expected, atol=1e-5)


def test_who_says_the_range_is_left_alone(tiny_dit, quiet):
    extract = FeatureExtractor(tiny_dit, 50, blocks=[2], device='cpu', value_range=(-1, 1))
    extract(UNIT)
    FeatureExtractor(tiny_dit, 50, blocks=[2], device='cpu')([UNIT * 2 - 1, torch.ones(3, 32, 40)])


def test_calibration_images_too(tiny_dit):
    images = [UNIT, UNIT.flip(1), UNIT.flip(2), UNIT.flip(1, 2)]
    options = dict(timesteps=[0, 500], cache=False, progress=False, blocks=[2], device='cpu')
    with pytest.warns(UserWarning, match=r'say value_range'):
        select_timestep(tiny_dit, images, **options)


@pytest.mark.parametrize('size', [(1, 3, 32, 32), (2, 3, 32, 40)])
def test_modules_for_other_libraries(tiny_dit, size):
    unit = torch.rand(size, generator=torch.Generator().manual_seed(0))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    normalized = (unit - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    expected = FeaturesOnly(tiny_dit, 50, [2])(unit * 2 - 1)[0]
    with pytest.raises(ValueError, match=r'Normalize images by mean 0\.5'):
        FeaturesOnly(tiny_dit, 50, [2])(normalized)
    with pytest.warns(UserWarning, match=r'as if they were images from 0 to 1'):
        FeaturesOnly(tiny_dit, 50, [2])(unit)

    def backbone(**options):
        return TransformersBackbone(tiny_dit, 50, out_indices=[2], **options)

    with pytest.raises(ValueError, match='Set image_mean and image_std'):
        backbone()(normalized)
    with pytest.warns(UserWarning, match=r'as if they were images from 0 to 1'):
        backbone()(unit)
    for options, batch in (
        (dict(image_mean=mean.tolist(), image_std=std.tolist()), normalized),
        (dict(image_mean=0, image_std=1), unit),
        ({}, unit * 2 - 1),
    ):
        found = backbone(**options)(batch).feature_maps[0]
        assert torch.allclose(found, expected, atol=1e-4)


def test_paths_in_arrays(tmp_path):
    Image.fromarray(PHOTO).save(tmp_path / 'a.png')
    for kind in (object, str):
        (found,) = list_images(np.array([str(tmp_path / 'a.png')], dtype=kind))
        assert found == tmp_path / 'a.png'


def test_forms_of_scikit_learn(tiny_dit):
    pytest.importorskip('sklearn')
    from mmaselect.apis.sklearn import DiTFeatures

    features = DiTFeatures(tiny_dit, timestep=50, blocks=[2], device='cpu')
    grey = PHOTO[None, ..., 0].repeat(4, 0)
    assert features.fit_transform(grey).shape == (4, 16)
    as_tensor = torch.from_numpy(grey)
    assert np.array_equal(features.transform(grey), features.transform(as_tensor))
    for table, message in (
        (PHOTO.reshape(1, -1), 'rows of numbers, and which pixels are neighbors is lost'),
        (PHOTO, r'is one image: give a list'),
        (np.zeros((1, 1, 2, 3, 4)), r'give \(n, height, width, 3\)'),
    ):
        with pytest.raises(ValueError, match=message):
            features.transform(table)


def test_what_is_no_image_is_named_by_its_place():
    with pytest.raises(ValueError, match=r'^image 1: an image must be a path, .*got None'):
        list_images([PHOTO, None])
