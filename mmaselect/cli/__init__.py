# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""The ``mmaselect`` command: what needs no config, for whoever installed the package alone."""

from mmaselect.cli.command import main

__all__ = ['main']
