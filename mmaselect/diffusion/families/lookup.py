# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Which family reads a transformer class."""

from __future__ import annotations

import diffusers
from packaging.version import Version

from mmaselect.diffusion.diagnose import check_entries
from mmaselect.diffusion.families.base import Family
from mmaselect.diffusion.families.refused import REFUSED
from mmaselect.diffusion.loading import PipelineSource

# Early DiT and PixArt repositories name the class that both were split from.
_LEGACY_CLASSES = {
    ('Transformer2DModel', 'ada_norm_zero'): 'DiTTransformer2DModel',
    ('Transformer2DModel', 'ada_norm_single'): 'PixArtTransformer2DModel',
}

_FAMILIES: dict[str, type[Family]] = {}
_ORIGINALS: dict[str, type[Family]] = {}


def register_family(cls: type[Family]) -> type[Family]:
    """Class decorator: make a family known under its transformer class."""
    if cls.original is not None:
        _ORIGINALS[cls.original] = cls
        return cls
    if cls.transformer_class in _FAMILIES:
        raise KeyError(
            f'{cls.transformer_class} has a family already: {_FAMILIES[cls.transformer_class]}'
        )
    _FAMILIES[cls.transformer_class] = cls
    return cls


def known_families() -> dict[str, type[Family]]:
    """Transformer class name to family, for all that are known."""
    return dict(_FAMILIES)


def family_of(source: PipelineSource) -> Family:
    """The family of a pipeline's transformer.

    Raises:
        ValueError: If no family knows its class; the message says why, where there is a reason, and
            lists the classes that are known.
        ImportError: If the installed diffusers is too old for it.
    """
    config = source.config('transformer')
    name = str(config.get('_class_name'))
    name = _LEGACY_CLASSES.get((name, str(config.get('norm_type'))), name)
    if name not in _FAMILIES:
        reason = f': {REFUSED[name]}' if name in REFUSED else ''
        raise ValueError(
            f'pretrained={source.name!r}: transformer class {name!r} is not supported{reason}. '
            f'Supported classes: {", ".join(sorted(_FAMILIES))}. To add an image transformer, '
            f'write a subclass of mmaselect.diffusion.families.Family and decorate it with '
            f'@register_family'
        )
    cls = _ORIGINALS.get(str(config.get('original')), _FAMILIES[name])
    # Builds from diffusers' main branch, '0.38.0.dev0', count as the release they become.
    installed = Version(diffusers.__version__)
    if Version(installed.base_version) < Version(cls.min_diffusers):
        raise ImportError(
            f'pretrained={source.name!r}: {cls.title} ({name}) needs diffusers >= '
            f'{cls.min_diffusers}, and {installed} is installed: '
            f"`pip install -U 'diffusers>={cls.min_diffusers}'`"
        )
    check_entries(config, getattr(diffusers, name))
    with source.naming('transformer/config.json'):
        family = cls(config)
        if family.num_blocks < 1 or min(family.stack_lengths) < 0:
            raise ValueError(f'it has {family.stack_lengths} blocks, and at least one is needed')
        # All that a family reads of a config, so that what it lacks is said here.
        _ = family.width, family.patch_size, family.in_channels
    return family
