# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""How the package and its extras are installed: the one place that says it."""

from __future__ import annotations


def install_command(*extras: str) -> str:
    """The command that installs the package with some extras, in the folder of its sources.

    The package is in no index: ``pip install mmaselect`` would fail, or give somebody else's.

    Example:
        >>> install_command('onedl', 'text')
        'pip install -e ".[onedl,text]"'
    """
    return f'pip install -e ".[{",".join(extras)}]"' if extras else 'pip install -e .'


def install_hint(*extras: str) -> str:
    """:func:`install_command`, with where to run it."""
    return f"{install_command(*extras)} (in the folder of mmaselect's sources)"
