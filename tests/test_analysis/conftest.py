# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Studies of tiny models on tiny data."""

import pytest
from tiny_configs import write_classification, write_segmentation

from mmaselect.analysis.study import make_parser, open_study


@pytest.fixture(scope='session')
def classification_config(tiny_dit, tmp_path_factory):
    return write_classification(tmp_path_factory.mktemp('classification'), tiny_dit)


@pytest.fixture(scope='session')
def segmentation_config(tiny_dit, tmp_path_factory):
    return write_segmentation(tmp_path_factory.mktemp('segmentation'), tiny_dit)


@pytest.fixture
def open_with(tmp_path):
    """Opens a study as a tool does, from a config and flags."""

    def open_(config, *flags):
        parser = make_parser('', '')
        args = parser.parse_args([str(config), '--out', str(tmp_path / 'out'), *flags])
        return open_study(args, 'test')

    return open_
