# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Every transformer class of the installed diffusers is read, or refused by name with a reason."""

import inspect
import json

import pytest
import torch
from diffusers.models import transformers

from mmaselect.diffusion import FrozenDiT, known_families
from mmaselect.diffusion.families.refused import REFUSED

CLASSES = {
    name
    for name, cls in inspect.getmembers(transformers, inspect.isclass)
    if issubclass(cls, torch.nn.Module)
}


def test_there_are_transformers_to_look_at():
    assert len(CLASSES) > 50
    assert known_families().keys() <= CLASSES


def test_every_class_is_read_or_refused_by_name():
    """A new diffusers may bring a class: write a family for it, or say in refused.py why not."""
    assert CLASSES - known_families().keys() - REFUSED.keys() == set()


def test_nothing_is_read_and_refused_or_refused_for_nothing():
    assert REFUSED.keys() & known_families().keys() == set()
    assert REFUSED.keys() - CLASSES == set()


@pytest.mark.parametrize('name', sorted(REFUSED))
def test_the_error_says_why(tmp_path, name):
    (tmp_path / 'transformer').mkdir()
    (tmp_path / 'transformer' / 'config.json').write_text(json.dumps({'_class_name': name}))
    with pytest.raises(ValueError, match=f"'{name}' is not supported") as error:
        FrozenDiT.from_pretrained(tmp_path)
    assert REFUSED[name] in str(error.value)
    assert all(known in str(error.value) for known in known_families())
