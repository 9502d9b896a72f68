# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
import pytest
from mmengine.config import Config

from mmaselect.launch.config import load_config, merge_options
from mmaselect.selection import SelectionOptions

CONFIG = """
model = dict(backbone=dict(
    type='mmaselect.ASelecTDiT',
    selection=dict(image_size=512, criterion=dict(type='FisherScore', num_classes=3), seed=7)))
"""


@pytest.mark.parametrize(
    ('options', 'expected'),
    [
        ({'model.backbone.selection': 'paper'}, dict(image_size=512, criterion='PaperHFR', seed=7)),
        (
            {'model.backbone.selection': 'paper', 'model.backbone.selection.seed': 3},
            dict(image_size=512, criterion='PaperHFR', seed=3),
        ),
        (
            {'model.backbone.selection.image_size': 256},
            dict(image_size=256, criterion='FisherScore', seed=7),
        ),
        (
            {'model.backbone.selection': dict(preset='paper', _delete_=True)},
            dict(image_size=None, criterion='PaperHFR', seed=0),
        ),
    ],
)
def test_a_preset_composes_with_the_options_of_the_config(tmp_path, options, expected):
    path = tmp_path / 'config.py'
    path.write_text(CONFIG)
    config = load_config(path, options)
    found = SelectionOptions.parse(config.model.backbone.selection)
    assert found.criterion['type'] == expected.pop('criterion')
    assert {name: getattr(found, name) for name in expected} == expected


def test_a_preset_where_the_config_has_none_or_another():
    config = Config(dict(model=dict(backbone=dict(type='x')), selection='paper'))
    merge_options(config, {'model.backbone.selection': 'paper'})
    assert config.model.backbone.selection == 'paper'
    # An unknown one is not hidden by what was there: parsing names it.
    config = Config(dict(backbone=dict(selection=dict(seed=1))))
    merge_options(config, {'backbone.selection': 'book'})
    with pytest.raises(ValueError, match="'book' is not a preset"):
        SelectionOptions.parse(config.backbone.selection)
