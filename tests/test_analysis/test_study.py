# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
import pytest

from mmaselect.selection import HighFrequencyRatio
from mmaselect.selection.scoring import build_criteria


def test_defaults_are_the_configs(open_with, classification_config):
    study = open_with(classification_config)
    assert study.task == 'classification'
    assert study.num_classes == 3
    assert study.dit.keys == ((1, 'query'),)
    assert study.image_size == 32
    plain = study.calibration_images(None, build_criteria(['HighFrequencyRatio']))
    viewed = study.calibration_images(None, build_criteria(['InstanceSensitivity']))
    assert len(plain) == len(viewed) == 8
    assert plain.views is None and viewed.views == study.selection.views
    assert plain.identity() != viewed.identity()
    assert list(study.criteria(fisher=False)) == ['InstanceSensitivity', 'PaperHFR']
    assert list(study.criteria(fisher=True))[-1] == 'FisherScore'


def test_flags(open_with, segmentation_config):
    study = open_with(
        segmentation_config,
        *('--blocks', 'all', '--features', 'all', '--image-size', '24', '32', '--cfg-options'),
        *('model.backbone.selection.criterion.type=HighFrequencyRatio',),
        *('model.backbone.selection.criterion.cutoff=0.3',),
    )
    assert study.task == 'segmentation'
    assert len(study.dit.keys) == 6 * 5
    assert study.image_size == (24, 32)
    picker = next(iter(study.criteria(fisher=False).values()))
    assert isinstance(picker, HighFrequencyRatio) and picker.options['cutoff'] == 0.3
    level = study.level(0, 48)
    assert 0 < level['noise_level'] < 0.05 and level['log_snr'] > 0


@pytest.mark.parametrize(
    'flags, message',
    [
        (['--blocks', 'some'], "--blocks takes numbers, or 'all'; got \\['some'\\]"),
        (['--blocks', '9'], 'block 9 is out of range'),
        (['--features', 'queries'], "feature 'queries' is not available"),
        (['--image-size', '1', '2', '3'], 'takes a side, or height and width'),
        (['--cfg-options', 'model.backbone.type=ResNet'], "model.backbone is 'ResNet'"),
        (['--cfg-options', 'model.head.num_classes=0'], 'neither model.head.num_classes'),
        (['--cfg-options', 'default_scope=mmrotate'], "is 'mmrotate'"),
    ],
)
def test_bad_flags(open_with, classification_config, flags, message):
    with pytest.raises(ValueError, match=message):
        open_with(classification_config, *flags)


def test_missing_dataloader(open_with, segmentation_config):
    with pytest.raises(ValueError, match='no test_dataloader'):
        open_with(segmentation_config).images('test', 1)
