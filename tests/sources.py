# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Options of a test in two: what belongs to the description of a model, and the rest."""

from mmaselect.diffusion.model_source import FIELDS


def described(model, options):
    """(description of the model, other options)."""
    fields = {name: options[name] for name in FIELDS if name in options}
    others = {name: value for name, value in options.items() if name not in fields}
    return (dict(model=model, **fields) if fields else model), others
