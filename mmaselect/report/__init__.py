# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""What a person sees of a pick: a box, a table, a plot and a page that loads nothing."""

from mmaselect.report.leaderboard_page import leaderboard_page, save_leaderboard_page
from mmaselect.report.plot import save_selection, selection_figure
from mmaselect.report.selection_page import (
    save_report,
    save_selection_page,
    selection_page,
)

__all__ = [
    'leaderboard_page',
    'save_leaderboard_page',
    'save_report',
    'save_selection',
    'save_selection_page',
    'selection_figure',
    'selection_page',
]
