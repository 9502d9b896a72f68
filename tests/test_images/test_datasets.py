# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
import numpy as np
import pytest
from mmengine.dataset import BaseDataset
from PIL import Image

from mmaselect.images import ImageFolder
from mmaselect.images.datasets import DatasetImages, build_image_source


class Entries(BaseDataset):
    """A dataset of the entries it is given."""

    def __init__(self, entries):
        self.entries = entries
        super().__init__()

    def load_data_list(self):
        return list(self.entries)  # MMEngine empties the list that it gets


PIXELS = np.arange(2 * 2 * 3, dtype=np.uint8).reshape(2, 2, 3)


def test_files_and_arrays_are_rgb(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / 'x.png')
    entries = [dict(img_path=str(tmp_path / 'x.png'), gt_label=3), dict(img=PIXELS, gt_label=[1])]
    for order, array in (('rgb', PIXELS), ('bgr', PIXELS[..., ::-1])):
        images = DatasetImages(Entries(entries), order)
        assert np.array_equal(images.load(0), PIXELS), 'files have an order of their own'
        assert np.array_equal(images.load(1), array)
    assert [images.name(i) for i in (0, 1)] == [str(tmp_path / 'x.png'), 'image 1']
    assert [images.label(i) for i in (0, 1)] == [3, None], 'several classes are no class'


def test_what_cannot_serve_is_said():
    with pytest.raises(ValueError, match=r"'rgb' or 'bgr', got 'gbr'"):
        DatasetImages(Entries([dict(img=PIXELS)]), 'gbr')
    with pytest.raises(ValueError, match=r"neither img_path nor img \(they have \['points'"):
        DatasetImages(Entries([dict(points=1)])).load(0)


def test_whatever_a_config_names(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / 'x.png')
    folder = build_image_source(str(tmp_path))
    assert isinstance(folder, ImageFolder)
    assert build_image_source(folder) is folder
    built = build_image_source(dict(type=Entries, entries=[dict(img=PIXELS)], pipeline=['unused']))
    assert np.array_equal(built.load(0), PIXELS)
    with pytest.raises(ValueError, match='needs calibration images'):
        build_image_source(None)
    with pytest.raises(ValueError, match=r'Entries.* found no images'):
        build_image_source(dict(type=Entries, entries=[]))
