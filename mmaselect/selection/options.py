# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""How a timestep is selected: one set of options for configs, Python and the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from mmaselect.images.views import ViewOptions
from mmaselect.selection.defaults import (
    DEFAULT_CRITERION,
    DEFAULT_NUM_IMAGES,
    DEFAULT_OTHERS,
    PRESETS,
)
from mmaselect.selection.grid import DEFAULT_GRID

#: A criterion by its name, or by a config with its arguments.
CriterionSpec = str | Mapping[str, Any]


@dataclass(frozen=True)
class SelectionOptions:
    """How a timestep is selected.

    Attributes:
        criterion: The registered criterion that picks: its name, or its config.
        others: Criteria that are scored beside it and never decide.
        timesteps: See :func:`~mmaselect.selection.grid.parse_timesteps`.
        num_images: Calibration images.
        image_size: Side, or (height, width), in pixels; the model's own training size if None.
        batch_size: Images per transformer pass.
        seed: Of the choice of images, of their views and of the noise.
        views: How random views are made, for criteria that compare them.
        cache_dir: Where results are kept; the default cache folder if None.
        array_order: Channel order of datasets in memory, ``'rgb'`` or ``'bgr'``.
    """

    criterion: CriterionSpec = field(default_factory=lambda: dict(DEFAULT_CRITERION))
    others: Sequence[CriterionSpec] = DEFAULT_OTHERS
    timesteps: str | int | Sequence[int] = DEFAULT_GRID
    num_images: int = DEFAULT_NUM_IMAGES
    image_size: int | tuple[int, int] | None = None
    batch_size: int = 16
    seed: int = 0
    views: ViewOptions = field(default_factory=ViewOptions)
    cache_dir: str | Path | None = None
    array_order: str = 'rgb'

    @classmethod
    def parse(
        cls, selection: SelectionOptions | Mapping[str, Any] | str | None
    ) -> SelectionOptions:
        """Options from what a config says.

        Args:
            selection: None for the defaults, the name of a preset (``'paper'``), a dict of some of
                the fields, which may name a preset to start from as ``preset``, or options.

        Raises:
            ValueError: If a preset or a key is not known.
        """
        if isinstance(selection, cls):
            return selection
        given = dict(preset=selection) if isinstance(selection, str) else dict(selection or {})
        preset = given.pop('preset', None)
        if preset is not None and preset not in PRESETS:
            raise ValueError(
                f'selection {preset!r} is no preset: choose from {", ".join(PRESETS)}, or give a '
                f'dict of {", ".join(f.name for f in fields(cls))}'
            )
        known = [f.name for f in fields(cls)]
        unknown = sorted(set(given) - set(known))
        if unknown:
            raise ValueError(f'selection has unknown keys {unknown}: it takes {", ".join(known)}')
        given = {**PRESETS.get(preset, {}), **given}
        views = given.get('views')
        if views is None:
            given.pop('views', None)
        elif not isinstance(views, ViewOptions):
            given['views'] = parse_views(views)
        given['others'] = tuple(given['others'] or ()) if 'others' in given else DEFAULT_OTHERS
        return cls(**given)

    def replaced(self, **changes: Any) -> SelectionOptions:
        """These options with some replaced."""
        return self.parse({**{f.name: getattr(self, f.name) for f in fields(self)}, **changes})


def parse_views(views: Mapping[str, Any]) -> ViewOptions:
    """View options from a config's dict.

    Raises:
        ValueError: If a key is not known, or a value is out of range.
    """
    known = [f.name for f in fields(ViewOptions)]
    unknown = sorted(set(views) - set(known)) if isinstance(views, Mapping) else [views]
    if unknown:
        raise ValueError(f'views has unknown keys {unknown}: it takes {", ".join(known)}')
    return replace(ViewOptions(), **views)
