# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""What a frozen model sees: colors of its tokens, and where else in the images they recur."""

from mmaselect.look.colors import token_colors
from mmaselect.look.figures import colors_figure, similarity_figure
from mmaselect.look.gathering import Look, look_at, look_size
from mmaselect.look.page import look_page, save_look_page
from mmaselect.look.similarity import similarity
from mmaselect.look.strip import save_sweep_report, selection_strip, try_strip

__all__ = [
    'Look',
    'colors_figure',
    'look_at',
    'look_page',
    'look_size',
    'save_look_page',
    'save_sweep_report',
    'selection_strip',
    'similarity',
    'similarity_figure',
    'token_colors',
    'try_strip',
]
