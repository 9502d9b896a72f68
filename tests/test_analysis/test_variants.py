# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
import pytest

from mmaselect.analysis.variants import describe, variants
from mmaselect.selection.scoring import build_criteria


@pytest.mark.parametrize('full', [False, True])
def test_all_can_be_built_and_told_apart(full):
    configs = variants(10, full)
    assert len({describe(config) for config in configs}) == len(configs)
    assert len(build_criteria(configs)) == len(configs)


def test_the_short_list_is_part_of_the_full_one():
    names = {describe(config) for config in variants(10, full=True)}
    assert {describe(config) for config in variants(10)} < names


def test_names():
    assert describe(dict(type='Mine', power=2)) == 'Mine power=2'
    assert describe(dict(type='FisherScore', num_classes=3, reduction='total')) == (
        'Fisher score total'
    )
