# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Checks a model as it is published, built on the meta device, against its family."""

import functools

import pytest

from mmaselect import model_info
from mmaselect.diffusion import known_families
from mmaselect.model_zoo import build_whole, derive

#: Name to (family, model), of all that are published.
MODELS = {
    model.name: (family, model)
    for family in known_families().values()
    for model in family.published
}


@functools.lru_cache(maxsize=1)
def _whole(cls, config_id):
    """A model on the meta device; those with the same config follow each other."""
    return build_whole(cls, next(m for m in cls.published if id(m.config) == config_id))


def published_config(name):
    """The transformer's config of a published model, as its family's file has it."""
    return dict(MODELS[name][1].config)


def check_published(name, width, blocks, billions, default_block=None, stored_tables=False):
    """Width, depth and number of weights of a published model, and its row in the list of models.

    Args:
        name: As ``pretrained`` takes it.
        width: As published, like the next two.
        blocks: All stacks together.
        billions: Billions of parameters. A page's number is rounded.
        default_block: Where it is not the middle one.
        stored_tables: Whether the page counts tables that the checkpoint stores as well.
    """
    cls, model = MODELS[name]
    transformer = _whole(cls, id(model.config))
    row = derive(cls, model, transformer)
    assert model_info(name) == row, 'run: python tools/dev/write_generated.py --models'
    family = cls(dict(transformer.config))
    assert (family.width, family.num_blocks) == (width, blocks)
    assert family.default_block == (blocks // 2 if default_block is None else default_block)
    assert model.stride % family.patch_size == 0
    counted = transformer.state_dict().values() if stored_tables else transformer.parameters()
    weights = sum(tensor.numel() for tensor in counted)
    assert weights == pytest.approx(billions * 1e9, rel=0.04)
    # The blocks that the family counts are all there are, in the order in which they run.
    counted = [family.block(transformer, index) for index in range(blocks)]
    assert counted == [m for m in transformer.modules() if m in counted]
    with pytest.raises((IndexError, AttributeError)):
        family.block(transformer, blocks)
