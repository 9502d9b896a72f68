# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""A checkpoint belongs to the blocks, the pixels and the condition that it was trained with."""

import logging

import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.model import BaseModel
from torch import nn

from mmaselect.models import ASelecTDiT
from mmaselect.models.backbones.input_guard import ARRIVES, CONDITIONED

IMAGENET = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])


def make(folder, **options):
    return ASelecTDiT(folder, **{'blocks': [1, 2], 'timestep': 100, **options})


class Model(BaseModel):
    def __init__(self, backbone, **preprocessor):
        super().__init__(dict(type='ImgDataPreprocessor', **IMAGENET, **preprocessor))
        self.inner = nn.Sequential(backbone)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        return self.inner(inputs)


@pytest.mark.parametrize(
    ('trained', 'config', 'message'),
    [
        (dict(blocks=[1, 2]), dict(blocks=[1, 3]), r'blocks \[1, 2\], the config says \[1, 3\]'),
        (dict(blocks=[1, 3]), dict(blocks=[1, 2]), r'blocks \[1, 3\], the config says \[1, 2\]'),
        (dict(blocks=[1, 2]), dict(blocks=[2]), r'blocks \[1, 2\], the config says \[2\]'),
        (dict(), dict(feature='key'), "feature 'query', the config says 'key'"),
        (dict(), dict(channel_order='bgr'), "channel_order='rgb', the config says 'bgr'"),
        (
            dict(input_mean=127.5, input_std=127.5),
            dict(input_mean=IMAGENET['mean'], input_std=127.5),
            r'input_mean=\[127.5, .*, the config says \[123.675,',
        ),
        (
            dict(input_mean=127.5, input_std=127.5),
            dict(input_mean=127.5, input_std=255),
            r'input_std=\[127.5, .*, the config says \[255.0,',
        ),
        (dict(), dict(condition=3), r'condition 10 \(the null class\), the config says 3. Set'),
        (dict(condition=4), dict(condition=3), r'condition 4, the config says 3. Set condition'),
    ],
)
def test_what_differs_is_named(tiny_dit, trained, config, message):
    state = make(tiny_dit, **trained).state_dict()
    with pytest.raises(ValueError, match=f'the checkpoint was trained with {message}'):
        make(tiny_dit, **config).load_state_dict(state)


def test_what_means_the_same_is_loaded(tiny_dit):
    state = make(tiny_dit).state_dict()
    null = make(tiny_dit).dit.family.num_classes
    for same in (
        dict(condition=null),
        dict(channel_order='rgb'),
        dict(input_mean=127.5, input_std=[127.5] * 3),
    ):
        make(tiny_dit, **same).load_state_dict(state)


def test_the_order_of_files_counts_in_a_model(tiny_dit):
    """A preprocessor that turns channels, and an order that undoes none, are one thing."""
    turned = Model(make(tiny_dit), bgr_to_rgb=True)
    as_loaded = Model(make(tiny_dit, channel_order='bgr'))
    as_loaded.load_state_dict(turned.state_dict())
    turned.load_state_dict(as_loaded.state_dict())
    wrong = Model(make(tiny_dit, channel_order='rgb'))
    with pytest.raises(ValueError, match=r'loaded as BGR.*loaded as RGB.*inner\.0\.arrives_as'):
        wrong.load_state_dict(turned.state_dict())
    state = {name: v for name, v in turned.state_dict().items() if ARRIVES not in name}
    wrong.load_state_dict(state)
    # A backbone in no model knows how pixels arrive, and not how they were loaded.
    make(tiny_dit).load_state_dict(turned.inner[0].state_dict())


def test_another_normalization_that_is_undone_gives_the_same_features(tiny_dit):
    trained = Model(make(tiny_dit), bgr_to_rgb=True).eval()
    other = Model(make(tiny_dit), bgr_to_rgb=True).eval()
    other.data_preprocessor.mean[:] = 127.5
    other.inner[0].adopt_preprocessor(other.data_preprocessor)
    heard = []
    handler = logging.Handler()
    handler.emit = lambda record: heard.append(record.getMessage())
    MMLogger.get_current_instance().addHandler(handler)
    other.load_state_dict(trained.state_dict())
    MMLogger.get_current_instance().removeHandler(handler)
    assert any('data_preprocessor of mean [123.67' in line for line in heard)
    images = dict(inputs=[torch.rand(3, 32, 32) * 255])
    found, expected = (model.test_step(images)[0] for model in (other, trained))
    assert torch.allclose(found, expected, atol=1e-4)


def test_a_preprocessor_of_whole_numbers(tiny_dit):
    trained = Model(make(tiny_dit), bgr_to_rgb=True)
    other = Model(make(tiny_dit), bgr_to_rgb=True)
    other.data_preprocessor.mean = torch.tensor([0, 0, 0]).view(3, 1, 1)
    other.data_preprocessor.std = torch.tensor([255, 255, 255]).view(3, 1, 1)
    other.inner[0].adopt_preprocessor(other.data_preprocessor)
    other.load_state_dict(trained.state_dict())
    trained.load_state_dict(other.state_dict())


def test_checkpoints_without_the_entries_load(tiny_dit):
    model = make(tiny_dit, condition=3, channel_order='bgr')
    own = model.state_dict()
    old = {name: v for name, v in own.items() if name not in (ARRIVES, CONDITIONED)}
    assert len(old) == len(own) - 2
    assert model.load_state_dict(old, strict=True).missing_keys == []
    assert all(torch.equal(model.state_dict()[name], value) for name, value in own.items())


def test_a_rounded_copy_of_a_model_loads(tiny_dit):
    state = make(tiny_dit, input_mean=IMAGENET['mean'], input_std=57.375).state_dict()
    state[ARRIVES] = state[ARRIVES].bfloat16()
    make(tiny_dit, input_mean=IMAGENET['mean'], input_std=57.375).load_state_dict(state)
