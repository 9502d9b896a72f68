# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""What Kandinsky 5 and 6 have in common."""

from __future__ import annotations

from mmaselect.diffusion.families.base import FEATURES, POST_FEATURES
from mmaselect.diffusion.families.text import TextFamily

# Rotary positions along each side of an image.
_POSITIONS = 128


class KandinskyFamily(TextFamily):
    """Names and sizes of a Kandinsky transformer; blocks are those of the image."""

    features = FEATURES + POST_FEATURES
    stacks = (('num_visual_blocks', 'visual_transformer_blocks'),)
    #: Names of the attention's projections.
    projections = ('to_query', 'to_key', 'to_value')

    @property
    def width(self) -> int:
        return int(self.config['model_dim'])

    @property
    def patch_size(self) -> int:
        return int(self.config['patch_size'][1])

    @property
    def in_channels(self) -> int:
        return int(self.config['in_visual_dim'])

    def check_grid(self, grid: tuple[int, int], stride: int) -> None:
        self.refuse_beyond(_POSITIONS, grid, stride, 'rotary positions')
