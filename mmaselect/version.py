# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""The version, alone in a file so that ``setup.py`` reads it without importing the package."""

__version__ = '0.1.0'
