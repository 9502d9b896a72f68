# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""The version, alone in a file so that ``pyproject.toml`` can read it and import nothing."""

__version__ = '0.1.0'
