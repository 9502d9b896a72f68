# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""One short file per transformer class. Importing the package registers them all."""

from importlib import import_module
from pkgutil import iter_modules

from mmaselect.diffusion.families.base import (
    FEATURES,
    POST_FEATURES,
    Family,
    Published,
    Tap,
    whole_output,
)
from mmaselect.diffusion.families.lookup import family_of, known_families, register_family
from mmaselect.diffusion.families.text import TextFamily

__all__ = [
    'FEATURES',
    'POST_FEATURES',
    'Family',
    'Published',
    'Tap',
    'TextFamily',
    'family_of',
    'known_families',
    'register_family',
    'whole_output',
]

for _file in iter_modules(__path__):
    import_module(f'{__name__}.{_file.name}')
