# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Training and testing by the toolboxes: configs, flags, processes, and hooks that harden a run."""

from mmaselect.openmmlab.compat import check_toolboxes

check_toolboxes()  # before MMEngine is imported: its absence deserves advice
