# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Checks a model as it is published, built on the meta device, against its family."""

import pytest
import torch

from mmaselect.diffusion import known_families


def check_published(model, default_block=None, stored_tables=False):
    """Width, depth and number of weights of a row of a test file's ``PUBLISHED``.

    Args:
        model: (name, class, config as on the model page, width, blocks, billions of parameters).
            The last is what the page says, which is rounded.
        default_block: Where it is not the middle one.
        stored_tables: Whether the page counts tables that the checkpoint stores as well.
    """
    _, cls, config, width, blocks, billions = model
    with torch.device('meta'):
        transformer = cls(**config)
    family = known_families()[cls.__name__](dict(transformer.config))
    assert (family.width, family.num_blocks) == (width, blocks)
    assert family.default_block == (blocks // 2 if default_block is None else default_block)
    counted = transformer.state_dict().values() if stored_tables else transformer.parameters()
    weights = sum(tensor.numel() for tensor in counted)
    assert weights == pytest.approx(billions * 1e9, rel=0.04)
    # The blocks that the family counts are all there are, in the order in which they run.
    counted = [family.block(transformer, index) for index in range(blocks)]
    assert counted == [m for m in transformer.modules() if m in counted]
    with pytest.raises((IndexError, AttributeError)):
        family.block(transformer, blocks)
