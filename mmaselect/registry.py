# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Criteria by name, and what rooms above plug into rooms below.

The registries of what configs build are in ``mmaselect.openmmlab.registries``.

A registry of our own: criteria are used without OpenMMLab, too.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, TypeVar, overload

from mmaselect.checks import is_meant

SCOPE = 'mmaselect'
Class = TypeVar('Class', bound=type)


class Registry:
    """Classes by name, with the calls of MMEngine's registries.

    Args:
        name: What the classes are, for messages.
        location: Module whose import registers those of the package.
    """

    def __init__(self, name: str, location: str) -> None:
        self.name = name
        self.location = location
        self.module_dict: dict[str, type] = {}

    @overload
    def register_module(
        self, name: str | None = ..., force: bool = ..., module: None = ...
    ) -> Callable[[Class], Class]: ...

    @overload
    def register_module(
        self, name: str | None = ..., force: bool = ..., *, module: Class
    ) -> Class: ...

    def register_module(
        self, name: str | None = None, force: bool = False, module: type | None = None
    ) -> Any:
        """Register a class: a decorator, or a plain call with ``module``.

        Args:
            name: Its name here; that of the class if None.
            force: Whether it may replace another class of that name.
            module: The class, for a plain call. The method returns a decorator if None.

        Returns:
            A decorator, or ``module``.

        Raises:
            KeyError: If another class has the name.
            TypeError: If what is registered is not a class.
        """

        def register(cls: Class) -> Class:
            if not inspect.isclass(cls):
                raise TypeError(f'{self.name} must be a class, got {cls!r}')
            key = cls.__name__ if name is None else name
            if not force and self.module_dict.get(key, cls) is not cls:
                raise KeyError(f'{key} is registered already as a {self.name}')
            self.module_dict[key] = cls
            return cls

        return register if module is None else register(module)

    def import_from_location(self) -> None:
        """Register the classes of the package."""
        import_module(self.location)

    def get(self, name: str) -> type | None:
        """The class of a name, with or without the prefix ``mmaselect.``; None if unknown."""
        self.import_from_location()
        return self.module_dict.get(name.removeprefix(f'{SCOPE}.'))

    def build(self, config: Mapping[str, Any]) -> Any:
        """An object from a dict with the class's name as ``type`` and its arguments.

        Raises:
            KeyError: If there is no such class.
        """
        arguments = dict(config)
        kind = arguments.pop('type')
        cls = self.get(kind) if isinstance(kind, str) else kind
        if cls is None:
            raise KeyError(
                f'{kind!r} is not a registered {self.name}{is_meant(kind, self.module_dict)}'
            )
        return cls(**arguments)


#: Criteria that score a timestep: see mmaselect.selection.criteria.base.Criterion.
CRITERIA = Registry('criterion', 'mmaselect.selection.criteria')

#: What a room above plugs in, by its purpose: ``'module:function'``, imported when it is needed.
#: ``'dataset images'`` makes an image source of a toolbox's dataset or its config.
PLUGINS: dict[str, str] = {}
