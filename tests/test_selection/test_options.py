# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
import inspect
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from mmaselect.apis import select_timestep
from mmaselect.images.views import ViewOptions
from mmaselect.selection import (
    DEFAULT_CRITERION,
    DEFAULT_OTHERS,
    HighFrequencyRatio,
    SelectionOptions,
)
from mmaselect.selection.defaults import PRESETS
from mmaselect.selection.options import images_flag, size_flag


def test_the_defaults():
    options = SelectionOptions.parse(None)
    assert options == SelectionOptions()
    assert options.criterion == DEFAULT_CRITERION and options.others == DEFAULT_OTHERS
    assert (options.num_images, options.batch_size, options.seed) == ('auto', 16, 0)
    assert (options.grows, options.first_images, options.most_images) == (True, 128, 1024)
    assert options.views == ViewOptions() and options.image_size is None
    assert (options.method, options.confidence) == ('race', 0.999)


def test_what_is_accepted_everywhere():
    options = SelectionOptions.parse(
        dict(
            criterion='HighFrequencyRatio',
            others='CrossSpectrumHFR',
            timesteps=np.array([0, 50]),
            num_images=np.int64(7),
            image_size=[np.int32(32), 24],
            views=dict(flip=True, scale=[0.5, 1]),
            cache_dir=Path('cache'),
        )
    )
    assert options.criterion == dict(type='HighFrequencyRatio')
    assert options.others == (dict(type='CrossSpectrumHFR'),)
    assert options.timesteps == (0, 50) and options.num_images == 7
    assert options.image_size == (32, 24) and options.cache_dir == Path('cache')
    assert options.views == ViewOptions(flip=True, scale=(0.5, 1.0))
    assert SelectionOptions(criterion=HighFrequencyRatio).criterion == dict(type=HighFrequencyRatio)
    assert SelectionOptions(others=None).others == ()


def test_how_many_images():
    fixed = SelectionOptions(num_images=256)
    assert (fixed.grows, fixed.first_images, fixed.most_images) == (False, 256, 256)
    # A criterion that does not say what images add cannot tell that it is undecided.
    fisher = SelectionOptions(criterion=dict(type='FisherScore', num_classes=3))
    assert (fisher.grows, fisher.most_images) == (False, 128)
    assert (images_flag('auto'), images_flag('64')) == ('auto', 64)
    for wrong in ('all', '64', 0, 1.5, None):
        with pytest.raises(ValueError, match='num_images must be'):
            SelectionOptions(num_images=wrong)


def test_presets_and_replacing():
    paper = SelectionOptions.parse('paper')
    assert paper.criterion == dict(type='PaperHFR') and paper.others == ()
    assert SelectionOptions.parse(dict(preset='paper', seed=3)).replaced(seed=4).seed == 4
    assert SelectionOptions.parse(paper) is paper
    fast = SelectionOptions.parse('fast')
    assert fast.criterion == SelectionOptions().criterion and fast.refine == 25
    assert fast.grid(1000).has_finer_steps and len(fast.grid(1000).coarse) == 10
    sized = SelectionOptions(image_size=48, num_images=9).replaced(preset='paper', seed=2)
    stated = {**PRESETS['paper'], 'num_images': 9}
    assert sized == SelectionOptions(**stated, image_size=48, seed=2)
    with pytest.raises(ValueError, match="selection 'book' is not a preset"):
        sized.replaced(preset='book')


def test_criteria_are_built_once_and_not_changed_by_sweeps():
    options = SelectionOptions(
        criterion='CrossSpectrumHFR', others=['CrossSpectrumHFR', 'PaperHFR']
    )
    assert list(options.criteria) == ['CrossSpectrumHFR', 'CrossSpectrumHFR-2', 'PaperHFR']
    assert options.criteria is options.criteria
    assert [config['type'] for config in options.criterion_configs] == [
        'CrossSpectrumHFR', 'CrossSpectrumHFR', 'PaperHFR',
    ]  # fmt: skip


def test_select_timestep_has_every_option_as_a_keyword():
    parameters = inspect.signature(select_timestep).parameters
    for option in fields(SelectionOptions):
        parameter = parameters[option.name]
        assert parameter.kind is parameter.KEYWORD_ONLY and parameter.annotation == option.type
    assert parameters['num_images'].default == 'auto'


def test_sizes_as_flags():
    assert size_flag('96') == 96 and size_flag('96x128') == (96, 128)
    for wrong in ('0', '9x', 'a', '1x2x3'):
        with pytest.raises(ValueError):
            size_flag(wrong)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(num_images=1e12), r'num_images must be a whole number of at least 1, got 1e\+?12|10'),
        (dict(num_images=0), 'num_images must be at least 1, got 0'),
        (dict(batch_size='4'), r"batch_size must be a whole number of at least 1, got '4'"),
        (dict(batch_size=True), 'batch_size must be a whole number'),
        (dict(seed=-1), 'seed must be from 0 to 4294967295, got -1'),
        (dict(image_size=0), 'image_size must be from 1 to 16384, got 0'),
        (dict(method='fast'), "method must be one of race, full, got 'fast'"),
        (dict(confidence=1), 'confidence must be from 0.5 to below 1, got 1'),
        (dict(confidence='high'), "confidence must be from 0.5 to below 1, got 'high'"),
        (dict(array_order='xyz'), "array_order must be one of rgb, bgr, got 'xyz'"),
        (dict(timesteps=b'12'), r"timesteps=b'12' is not a timestep grid: write 'START:STOP:STEP'"),
        (dict(timesteps=[1.7]), r'timesteps=\[1\.7\] is not a timestep grid'),
        (dict(timesteps=True), 'timesteps=True is not a timestep grid'),
        (dict(timesteps='0:10000000000:1'), r'timesteps=.* has 10000000000 points'),
        (dict(views=3), 'views must be a dict .* it takes scale, flip, noise, pixels; got 3'),
        (dict(views=dict(zoom=1)), r"views has unknown keys \['zoom'\]"),
        (dict(cache_dir=3), 'cache_dir must be a path'),
        (dict(criterion=7), 'criterion: a criterion is given by its name, or .*; got 7'),
        (dict(criterion={}), 'criterion: a criterion is given by its name'),
        (dict(criterion='NoSuch'), "criterion 'NoSuch' is not known: choose from"),
        (
            dict(criterion=dict(type='HighFrequencyRatio', cut=1)),
            r"criterion HighFrequencyRatio: .*cut.*It takes cutoff, shape",
        ),
        (
            dict(criterion=dict(type='HighFrequencyRatio', cutoff='x')),
            r'criterion HighFrequencyRatio: .*It takes cutoff',
        ),
        (dict(others=[7]), 'others: a criterion is given by its name, or .*; got 7'),
        (dict(preset='book'), "is not a preset: choose from paper, fast, or give a dict"),
        (dict(images=3), r"selection has unknown keys \['images'\]: it takes criterion, others"),
        ('book', "selection 'book' is not a preset"),
        (5, 'selection must be a dict with text keys: it takes criterion, .*; got 5'),
    ],
)  # fmt: skip
def test_every_field_is_named_in_its_error(options, message):
    with pytest.raises(ValueError, match=message):
        SelectionOptions.parse(options)


def test_presets_have_a_stated_number_of_images():
    for name in PRESETS:
        assert SelectionOptions.parse(name).num_images == 128
        assert SelectionOptions().replaced(preset=name).num_images == 128
        # What a user states stays.
        assert SelectionOptions(num_images=40).replaced(preset=name).num_images == 40
        assert SelectionOptions.parse(dict(preset=name, num_images='auto')).num_images == 'auto'
        assert SelectionOptions().replaced(preset=name, num_images=24).num_images == 24
