# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Trained models next to each other: what ``tools/leaderboard.py`` is built from."""
