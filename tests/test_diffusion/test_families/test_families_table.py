# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""The table of docs/families.md says what the code does, for models as they are published."""

import re
from importlib import import_module
from pathlib import Path

import pytest
import torch

from mmaselect.diffusion import known_families

ROOT = Path(__file__).parents[3]
MODELS = {
    model[0]: model
    for path in sorted(Path(__file__).parent.glob('test_*.py'))
    if 'PUBLISHED = [' in path.read_text(encoding='utf-8') and path != Path(__file__)
    for model in import_module(path.stem).PUBLISHED
}


def rows():
    """Cells of every row that a model leads, by the model."""
    text = (ROOT / 'docs' / 'families.md').read_text(encoding='utf-8')
    cells = [[cell.strip(' `') for cell in line.split('|')[1:-1]] for line in text.splitlines()]
    return {row[0]: row[1:] for row in cells if len(row) == 8 and '/' in row[0]}


def gigabytes(model):
    """GiB of a model's weights, and of tables that are stored with them, at 16 bit."""
    return sum(tensor.numel() for tensor in model.state_dict().values()) * 2 / 2**30


def test_every_published_model_has_a_row_and_every_family_a_model():
    assert rows().keys() == MODELS.keys()
    assert {row[0] for row in rows().values()} == known_families().keys()


@pytest.mark.parametrize('name', MODELS)
def test_row(name):
    _, cls, config, width, blocks, _ = MODELS[name]
    with torch.device('meta'):
        whole = cls(**config)
    family = known_families()[cls.__name__](dict(whole.config))
    needed = family.default_block + 1
    with torch.device('meta'):
        built = cls.from_config({**dict(whole.config), **family.build_overrides(needed)})
    family.trim(built, needed)

    row = rows()[name]
    assert row[0] == cls.__name__
    # '57 (19 + 38)': both ways of saying it.
    counts = [int(number) for number in re.findall(r'\d+', row[2])]
    assert (int(row[1]), counts[0], int(row[3])) == (width, blocks, family.default_block)
    assert sum(counts[1:]) in (0, blocks)
    assert int(row[4]) % family.patch_size == 0
    assert row[6] == f'{gigabytes(built):.1f} of {gigabytes(whole):.1f}'
