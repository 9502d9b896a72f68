# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""How pixels arrive is read from the model's own ``data_preprocessor``."""

import copy
import gc
import weakref

import pytest
import torch
from mmengine.model import BaseDataPreprocessor, BaseModel, ImgDataPreprocessor
from torch import nn

from mmaselect.models import ASelecTDiT

MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
PIXELS = torch.linspace(0, 255, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32)  # BGR


class Model(BaseModel):
    def __init__(self, data_preprocessor, backbone):
        super().__init__(data_preprocessor)
        self.inner = nn.Sequential(backbone)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        return self.inner(inputs)


def build(folder, preprocessor, **options):
    return Model(preprocessor, ASelecTDiT(folder, blocks=[2], timestep=100, **options)).eval()


def processor(**options):
    return dict(dict(type='ImgDataPreprocessor', mean=MEAN, std=STD, bgr_to_rgb=True), **options)


def read(model):
    return model.test_step(dict(inputs=list(PIXELS)))[0]


@pytest.fixture
def expected(tiny_dit):
    backbone = ASelecTDiT(tiny_dit, blocks=[2], timestep=100).eval()
    return backbone(PIXELS.flip(1) / 127.5 - 1)[0]


@pytest.mark.parametrize(
    ('preprocessor', 'options'),
    [
        (processor(), {}),
        (processor(), dict(input_mean=MEAN, input_std=STD, channel_order='rgb')),
        (processor(mean=[0, 0, 0], std=[255, 255, 255]), {}),
        (processor(mean=[127.5], std=[127.5]), {}),
        (processor(mean=None, std=None), {}),
        (processor(bgr_to_rgb=False), dict(channel_order='bgr')),
    ],
)
def test_pixels_are_those_that_the_files_have(tiny_dit, expected, preprocessor, options):
    assert torch.allclose(read(build(tiny_dit, preprocessor, **options)), expected, atol=1e-4)


def test_the_preprocessors_of_the_toolboxes(tiny_dit, expected):
    seg = pytest.importorskip('mmseg.models').SegDataPreProcessor
    cls = pytest.importorskip('mmpretrain.models').ClsDataPreprocessor
    for preprocessor, batch in (
        (seg(mean=MEAN, std=STD, bgr_to_rgb=True, size=(32, 32)), dict(inputs=list(PIXELS))),
        (cls(mean=MEAN, std=STD, to_rgb=True), dict(inputs=PIXELS)),
        (cls(to_rgb=True), dict(inputs=PIXELS)),
    ):
        backbone = ASelecTDiT(tiny_dit, blocks=[2], timestep=100)
        model = Model(preprocessor, backbone).eval()
        with torch.no_grad():
            inputs = model.data_preprocessor({**batch, 'data_samples': None}, training=False)
            found = backbone(inputs['inputs'])[0]
        assert torch.allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(input_mean=127.5), r'input_mean=\[127.5, .* contradicts .*\[123.675, 116.28, 103.53'),
        (dict(input_std=[58, 57, 57]), r'input_std=\[58.0, 57.0, 57.0\] .* gives \[58.395, 57.12'),
        (dict(channel_order='bgr'), "channel_order='bgr' of the backbone contradicts .*'rgb'"),
    ],
)
def test_a_contradiction_shows_both(tiny_dit, options, message):
    with pytest.raises(ValueError, match=message):
        build(tiny_dit, processor(), **options)


def test_an_open_order_is_an_error_before_anything_is_read(tiny_dit, photos):
    model = build(tiny_dit, processor(bgr_to_rgb=False))
    with pytest.raises(ValueError, match=r"channel_order is open: .*channel_order='bgr'"):
        read(model)
    with pytest.raises(ValueError, match='channel_order is open'):
        model.inner[0].init_weights()


def test_a_preprocessor_that_comes_later_or_anew(tiny_dit, expected):
    model = build(tiny_dit, BaseDataPreprocessor())
    assert torch.equal(model.inner[0].gate.scale, torch.ones(3, 1, 1)), 'nothing is known'
    model.data_preprocessor = ImgDataPreprocessor(mean=MEAN, std=STD, bgr_to_rgb=True)
    assert torch.allclose(read(model), expected, atol=1e-4)
    outer = nn.Module()
    outer.model = ASelecTDiT(tiny_dit, blocks=[2], timestep=100)
    outer.data_preprocessor = ImgDataPreprocessor(mean=MEAN, std=STD, bgr_to_rgb=True)
    assert torch.allclose(outer.model.gate.scale, model.inner[0].gate.scale)


def test_copies_keep_it_and_nothing_is_kept_alive(tiny_dit, expected):
    model = build(tiny_dit, processor())
    twin = copy.deepcopy(model)
    assert torch.allclose(read(twin), expected, atol=1e-4)
    gone = weakref.ref(model.inner[0])
    model.inner = nn.Identity()
    gc.collect()
    assert gone() is None


def test_every_batch_is_checked(tiny_dit):
    model = build(tiny_dit, processor())
    read(model)
    with pytest.raises(ValueError, match=r'pixels span .* The ImgDataPreprocessor of the model'):
        model.inner(PIXELS)


def test_a_backbone_alone_warns_of_images_from_0_to_1(tiny_dit, recwarn):
    unit = PIXELS / 255
    for options in (dict(input_mean=127.5, input_std=127.5), {}):
        backbone = ASelecTDiT(tiny_dit, blocks=[2], timestep=100, **options)
        recwarn.clear()
        backbone(unit * 2 - 1), backbone(torch.zeros(1, 3, 32, 32))
        assert not recwarn
    with pytest.warns(UserWarning, match=r'as if they were images from 0 to 1\. Give the backbone'):
        ASelecTDiT(tiny_dit, blocks=[2], timestep=100)(unit)


@pytest.mark.parametrize('shape', [(0, 3, 32, 32), (1, 4, 32, 32), (3, 32, 32)])
def test_shapes(tiny_dit, shape):
    with pytest.raises(ValueError, match=r'the batch is empty|a batch of images of three channels'):
        ASelecTDiT(tiny_dit, blocks=[2], timestep=100)(torch.zeros(shape))
