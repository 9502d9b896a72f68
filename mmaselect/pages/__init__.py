# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Pages that are one file each: what they show is in them, and nothing is loaded from elsewhere."""

from mmaselect.pages.leaderboard_page import leaderboard_page, save_leaderboard_page
from mmaselect.pages.selection_page import (
    save_report,
    save_selection_page,
    selection_page,
)

__all__ = [
    'leaderboard_page',
    'save_leaderboard_page',
    'save_report',
    'save_selection_page',
    'selection_page',
]
