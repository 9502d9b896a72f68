# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""The ``mmaselect`` command: all that needs no config."""

from mmaselect.cli.command import main

__all__ = ['main']
