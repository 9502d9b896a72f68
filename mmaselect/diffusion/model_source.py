# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Which model is read, and where its parts are found: one description, which every face takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from mmaselect.checks import check_names, finite_number, is_sequence, keywords, shorten, warn_moved

#: What says where files are found on the hub, and of which types it is.
HUB_TYPES: dict[str, tuple[type, ...]] = {
    'revision': (str,),
    'variant': (str,),
    'cache_dir': (str, Path),
    'token': (str, bool),
    'local_files_only': (bool,),
    'force_download': (bool,),
    'proxies': (Mapping,),
}
#: Arguments that faces had before there was a description, besides its own fields.
OLD_NAMES = ('hub_kwargs', 'lora_scale')

#: A LoRA: file, folder or hub id; or a dict of this ``path`` and a ``scale``.
LoraSpec = str | Path | Mapping[str, Any]


@dataclass(frozen=True)
class ModelSource:
    """A model, and where its parts are found.

    Every face of the package takes it as ``pretrained``: as this object, as a dict of its fields,
    or as the name of a model alone.

    Attributes:
        model: Hub id, local folder in diffusers' pipeline layout, or ``mmaselect://NAME``; or a
            transformer alone, in a folder or a file of weights: see ``docs/checkpoints.md``.
        base: Pipeline (hub id, local folder, ``mmaselect://NAME``) that scheduler, VAE and text
            encoders come from, where ``model`` is a transformer alone.
        vae: Hub id or local folder of a VAE in place of the model's own: a fine-tuned version of
            the same, or its TAESD.
        original: What a file of the DiT kind holds, where neither its name nor its content tells:
            ``'dit'``, ``'sit'`` or ``'repa'``, or a dict of ``model`` (one of them) and
            ``num_heads`` (for sizes that are not published).
        lora: LoRA that is fused into the weights: file, folder or hub id, or a dict of ``path`` and
            ``scale``; or a list of them.
        load_kwargs: More arguments for diffusers' ``from_pretrained`` of the transformer, for
            example ``quantization_config`` or ``device_map``.
        revision: Branch, tag or commit of ``model`` on the hub.
        variant: Variant of the files of weights, such as ``'fp16'``.
        cache_dir: Where the hub's files are kept.
        token: For gated models on the hub.
        local_files_only: Whether to look for the hub's files on this machine alone.
        force_download: Whether to load the hub's files again.
        proxies: Proxies of the connection to the hub.

    Raises:
        ValueError: If a field is of another type.

    Example:
        >>> from mmaselect.diffusion import ModelSource
        >>> print(ModelSource.parse(dict(model='my/transformer', base='facebook/DiT-XL-2-512')))
        my/transformer (base='facebook/DiT-XL-2-512')
    """

    model: str | Path
    base: str | Path | None = None
    vae: str | Path | None = None
    original: str | Mapping[str, Any] | None = None
    lora: LoraSpec | Sequence[LoraSpec] | None = None
    load_kwargs: Mapping[str, Any] | None = None
    revision: str | None = None
    variant: str | None = None
    cache_dir: str | Path | None = None
    token: str | bool | None = field(default=None, repr=False)
    local_files_only: bool | None = None
    force_download: bool | None = None
    proxies: Mapping[str, str] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        for name, kinds in HUB_TYPES.items():
            value = getattr(self, name)
            if value is not None and not isinstance(value, kinds):
                wanted = ' or '.join(kind.__name__ for kind in kinds)
                raise ValueError(f'pretrained: {name} must be {wanted}, got {shorten(value)}')
        keywords('load_kwargs', self.load_kwargs)
        _ = self.loras

    @classmethod
    def parse(cls, pretrained: str | Path | Mapping[str, Any] | ModelSource) -> ModelSource:
        """A description from what the user wrote.

        Args:
            pretrained: The name of a model, a dict of the fields of this class, or a description.

        Raises:
            ValueError: If a dict lacks ``model``, or has keys that are not fields.
        """
        if isinstance(pretrained, ModelSource):
            return pretrained
        if not isinstance(pretrained, Mapping):
            return cls(pretrained)
        given = keywords('pretrained', pretrained, FIELDS)
        if 'model' not in given:
            raise ValueError(
                f'pretrained={shorten(pretrained)} lacks the model: give its name, or a dict of '
                f"it and where its parts are, such as dict(model='NAME', base='PIPELINE')"
            )
        return cls(**given)

    @classmethod
    def gather(
        cls,
        pretrained: str | Path | Mapping[str, Any] | ModelSource,
        flat: Mapping[str, Any],
        face: Callable[..., Any] | None = None,
        elsewhere: Mapping[str, str] | None = None,
    ) -> ModelSource:
        """A description from ``pretrained``, and from arguments that stood next to it in the past.

        Args:
            pretrained: See :meth:`parse`.
            flat: Fields as arguments of their own, ``lora_scale``, and a dict ``hub_kwargs``. What
                is given here is added with a warning that shows the new form.
            face: Who took them, for the message about another name.
            elsewhere: Names that belong to another of its arguments, and how to write them.

        Raises:
            ValueError: If one is given twice.
            TypeError: If there are other arguments; the message names the one that is meant.
        """
        source = cls.parse(pretrained)
        check_flat_names(flat, face or cls, elsewhere)
        given = dict(flat)
        given.update(keywords('hub_kwargs', given.pop('hub_kwargs', None), tuple(HUB_TYPES)))
        scale = given.pop('lora_scale', None)
        scale = 1.0 if scale is None else finite_number('lora_scale', scale)
        given = {name: value for name, value in given.items() if value is not None}
        if scale != 1 and 'lora' in given:
            given['lora'] = dict(path=given['lora'], scale=scale)
        twice = [name for name in given if getattr(source, name) is not None]
        if twice:
            raise ValueError(f'{twice[0]} is given twice, in pretrained and next to it')
        if not given:
            return source
        source = replace(source, **given)
        warn_moved(list(given), 'pretrained', source.as_dict())
        return source

    @property
    def hub_kwargs(self) -> dict[str, Any]:
        """What diffusers' ``from_pretrained`` takes to find files."""
        given = {name: getattr(self, name) for name in HUB_TYPES}
        return {name: value for name, value in given.items() if value is not None}

    @property
    def loras(self) -> tuple[tuple[str | Path, float], ...]:
        """Path and scale of each LoRA, in the order in which they are fused."""
        if self.lora is None:
            return ()
        listed = list(self.lora) if is_sequence(self.lora) else [self.lora]
        return tuple(_path_and_scale(one) for one in listed)

    def as_dict(self) -> dict[str, Any]:
        """The fields that are given, without the token."""
        given = {name: getattr(self, name) for name in FIELDS if name not in ('token', 'proxies')}
        return {
            name: str(value) if isinstance(value, Path) else value
            for name, value in given.items()
            if value is not None
        }

    def __str__(self) -> str:
        model, *others = self.as_dict().items()
        more = ', '.join(f'{name}={value!r}' for name, value in others)
        return f'{model[1]} ({more})' if more else str(model[1])


FIELDS = tuple(each.name for each in fields(ModelSource))


def check_flat_names(
    flat: Collection[str], face: Callable[..., Any], elsewhere: Mapping[str, str] | None = None
) -> None:
    """Check that further arguments of a face are fields of ``pretrained`` in the old form.

    Args:
        flat: Their names.
        face: The class or function.
        elsewhere: Names that belong to another of its arguments, and how to write them.

    Raises:
        TypeError: If one is another, or might be of either; the message names what may be meant.
    """
    stated = [
        name
        for name, parameter in inspect.signature(face).parameters.items()
        if parameter.kind is not parameter.VAR_KEYWORD
    ]
    fields_of_model = {name: f'pretrained=dict({name}=...)' for name in FIELDS[1:]}
    known = (*FIELDS[1:], *OLD_NAMES)
    for name in sorted(set(flat) & set(FIELDS) & set(elsewhere or {})):
        raise TypeError(
            f'{name} has two meanings: write {fields_of_model[name]} for the files of the hub, or '
            f'{(elsewhere or {})[name]} for the results of selections'
        )
    check_names(
        getattr(face, '__qualname__', str(face)),
        [name for name in flat if name not in known],
        stated,
        {**fields_of_model, **(elsewhere or {})},
    )


#: What arguments of a face are by default, where that is not None.
_DEFAULTS = {'dtype': 'auto', 'feature': 'query'}


def check_not_loaded(given: Mapping[str, Any]) -> None:
    """Check that nothing says how to load a model that is loaded already.

    Args:
        given: Arguments about the model, some of which may be the defaults.

    Raises:
        ValueError: If one is not; the message names it.
    """
    said = []
    for name, value in given.items():
        default = _DEFAULTS.get(name)
        if not (value is None or (isinstance(value, str) and value == default)):
            said.append(name)
    if said:
        raise ValueError(
            f'{sorted(said)} describe a model, and model is loaded already: leave them out, or '
            f'give its name'
        )


def _path_and_scale(lora: Any) -> tuple[str | Path, float]:
    if not isinstance(lora, Mapping):
        return lora, 1.0
    given = keywords('lora', lora, ('path', 'scale'))
    if 'path' not in given:
        raise ValueError(f'lora={shorten(lora)} lacks the path: dict(path=FILE, scale=0.8)')
    return given['path'], finite_number('scale of lora', given.get('scale', 1.0))
