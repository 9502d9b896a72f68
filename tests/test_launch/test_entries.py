# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
import mmpretrain.models  # noqa: F401
import mmseg.models  # noqa: F401
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from torch import nn

from mmaselect.launch.entries import (
    check_calibration_is_there,
    check_entries,
    naming_entries,
    wrong_entries,
)

BACKBONE = dict(type='mmaselect.ASelecTDiT', pretrained='mmaselect://dit_cifar10', timestep=50)


def segmentor(blocks, head, neck=None, **others):
    common = dict(channels=8, num_classes=3, norm_cfg=dict(type='BN'), align_corners=False)
    model = dict(
        type='mmseg.EncoderDecoder',
        backbone=dict(BACKBONE, blocks=blocks),
        decode_head={**common, **head},
        **{name: {**common, **one} for name, one in others.items()},
        train_cfg=None,
        test_cfg=dict(mode='whole'),
    )
    return MODELS.build(model if neck is None else dict(model, neck=neck))


@pytest.mark.parametrize(
    ('blocks', 'head', 'line'),
    [
        ([3], dict(type='mmseg.FCNHead', in_channels=224), None),
        ([3], dict(type='mmseg.FCNHead', in_channels=224, in_index=0), None),
        ([3], dict(type='mmseg.FCNHead', in_channels=512), 'in_channels is 512.* set it to 224'),
        ([3], dict(type='mmseg.FCNHead', in_channels=224, in_index=3), 'in_index is 3.* must be 0'),
        (
            [1, 3],
            dict(type='mmseg.UPerHead', in_channels=[224] * 4, in_index=[0, 1, 2, 3]),
            r'in_index is \[0, 1, 2, 3\].* 2 maps, of 224, 224 channels.* must be 0 to 1',
        ),
        (
            [1, 3],
            dict(type='mmseg.SegformerHead', in_channels=[224, 64], in_index=[0, 1]),
            r'in_channels is \[224, 64\].* set it to \[224, 224\]',
        ),
        (
            [1, 3],
            dict(
                type='mmseg.FCNHead',
                in_channels=[224, 224],
                in_index=[0, 1],
                input_transform='resize_concat',
            ),
            None,
        ),
    ],
)
def test_entries_of_a_segmentor(blocks, head, line):
    model = segmentor(blocks, head)
    if line is None:
        assert wrong_entries(model) == []
        check_entries(model)
        features = model.extract_feat(torch.zeros(2, 3, 16, 16))
        assert model.decode_head(features).shape[:2] == (2, 3), 'what is not refused works'
        return
    with pytest.raises(ValueError, match=rf'model.decode_head.{line}'):
        check_entries(model)
    with pytest.raises((IndexError, RuntimeError)):  # the toolbox itself, without these words
        model.decode_head(model.extract_feat(torch.zeros(2, 3, 16, 16)))


def test_entries_of_auxiliary_heads_and_necks():
    right = dict(type='mmseg.FCNHead', in_channels=224)
    model = segmentor([3], right, auxiliary_head=dict(right, in_index=2))
    with pytest.raises(ValueError, match=r'model\.auxiliary_head\.in_index is 2'):
        check_entries(model)
    neck = dict(type='mmseg.MultiLevelNeck', in_channels=[224, 224], out_channels=16)
    model = segmentor([3], dict(right, in_channels=16), neck)
    with pytest.raises(ValueError, match=r'model.neck.in_channels is \[224, 224\].* one map'):
        check_entries(model)
    model = segmentor([1, 3], dict(right, in_channels=16, in_index=3), neck)
    assert wrong_entries(model) == [], 'what a neck gives is its own'


@pytest.mark.parametrize('neck', [None, dict(type='mmpretrain.GlobalAveragePooling')])
@pytest.mark.parametrize('channels', [224, 768])
def test_entries_of_a_classifier(neck, channels):
    head = dict(type='mmpretrain.LinearClsHead', num_classes=4, in_channels=channels)
    config = dict(type='mmpretrain.ImageClassifier', backbone=BACKBONE, head=head)
    model = MODELS.build(config if neck is None else dict(config, neck=neck))
    lines = wrong_entries(model)
    assert bool(lines) == (channels == 768)
    assert all('model.head.in_channels is 768' in line and '224' in line for line in lines)


class Head(nn.Module):
    """Of a user: what its entries mean is not known."""

    in_channels, num_classes = 5, 2


class Runner:
    _train_loop = _test_loop = _val_loop = None
    world_size = 1

    def __init__(self, model):
        self.model = model


@pytest.fixture(scope='module')
def runner():
    model = segmentor([3], dict(type='mmseg.FCNHead', in_channels=224))
    model.decode_head = Head()
    return Runner(model)


def test_a_head_of_ones_own_is_looked_at_when_it_fails(runner):
    check_entries(runner.model)
    words = r'in_channels is 5.*224.*RuntimeError: Given groups=1'
    with pytest.raises(ValueError, match=words), naming_entries(Config(), runner):
        raise RuntimeError('Given groups=1, weight of size [8, 5, 1, 1], expected ...')
    for error in (FileNotFoundError('x'), ValueError('another'), KeyError('y'), MemoryError()):
        with pytest.raises(type(error)) as caught, naming_entries(Config(), runner):
            raise error
        assert caught.value is error, 'what the entries do not explain stays as it is'


def test_labels_and_batches(runner):
    words = r'decode_head.num_classes is 2.* 0 to 1.* is 7'
    with pytest.raises(ValueError, match=words), naming_entries(Config(), runner):
        raise IndexError('Target 7 is out of bounds.')
    config = Config(dict(train_dataloader=dict(batch_size=4)))
    words = r'batch_size is 4.*got input size'
    with pytest.raises(ValueError, match=words), naming_entries(config, runner):
        raise ValueError('Expected more than 1 value per channel when training, got input size')


def test_calibration_of_a_run_that_selects(tmp_path):
    def run(backbone, **others):
        model = dict(backbone={**BACKBONE, 'timestep': 'auto', **backbone})
        check_calibration_is_there(Config(dict(model=model, **others)))

    with pytest.raises(ValueError, match=r'model.backbone.calibration is not given'):
        run({})
    with pytest.raises(FileNotFoundError, match=r"calibration='gone' does not exist"):
        run(dict(calibration='gone', timestep=dict(steps=['auto', 300])))
    for backbone, others in (
        (dict(calibration=str(tmp_path)), {}),
        (dict(calibration=dict(type='X')), {}),
        (dict(calibration='gone', timestep=3), {}),
        (dict(calibration='gone'), dict(load_from='a.pth')),
        (dict(type='mmseg.ResNet'), {}),
    ):
        run(backbone, **others)
