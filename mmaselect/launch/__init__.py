# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Training and testing by the toolboxes: configs, flags, processes, and hooks that harden a run."""
