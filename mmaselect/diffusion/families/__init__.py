# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""One short file per transformer class. Importing the package registers them all."""

from mmaselect.diffusion.families import dit  # noqa: F401 (registers)
from mmaselect.diffusion.families.base import (
    FEATURES,
    Family,
    Tap,
    known_families,
    register_family,
    whole_output,
)

__all__ = ['FEATURES', 'Family', 'Tap', 'known_families', 'register_family', 'whole_output']
