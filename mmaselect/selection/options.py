# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""How a timestep is selected: one set of options for configs, Python and the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from mmaselect.checks import (
    check_image_size,
    check_path,
    choice,
    is_number,
    is_sequence,
    keywords,
    seed_number,
    shorten,
    whole_number,
)
from mmaselect.images.sources import ARRAY_ORDERS
from mmaselect.images.views import ViewOptions
from mmaselect.selection.defaults import (
    DEFAULT_CONFIDENCE,
    DEFAULT_CRITERION,
    DEFAULT_METHOD,
    DEFAULT_NUM_IMAGES,
    DEFAULT_OTHERS,
    METHODS,
    PRESETS,
)
from mmaselect.selection.grid import DEFAULT_GRID, read_grid
from mmaselect.selection.scoring import build_criteria

#: A criterion by its name, or by a config with its arguments.
CriterionSpec = str | Mapping[str, Any]


@dataclass(frozen=True)
class SelectionOptions:
    """How a timestep is selected.

    Attributes:
        criterion: The registered criterion that picks: its name, or its config.
        others: Criteria that are scored beside it and never decide; one, several or None.
        timesteps: See :func:`~mmaselect.selection.grid.parse_timesteps`.
        num_images: Calibration images.
        image_size: Side, or (height, width), in pixels; the model's own training size if None.
        batch_size: Images per transformer pass.
        seed: Of the choice of images, of their views and of the noise.
        views: How random views are made, for criteria that compare them.
        cache_dir: Where results are kept; the default cache folder if None.
        array_order: Channel order of datasets in memory, ``'rgb'`` or ``'bgr'``.
        method: ``'race'``, which drops a timestep once it cannot be the best any more, or
            ``'full'``, which scores every timestep on every image. See
            :mod:`mmaselect.selection.race`.
        confidence: Of a race: that a timestep which is dropped is worse than the leader.
        refine: Spacing of a finer grid between the timesteps that may be the best and their
            neighbors, which is searched once the grid itself has been; None to leave it at that.

    Raises:
        ValueError: If a value is of another type, or out of range; the message names it.
    """

    criterion: CriterionSpec = field(default_factory=lambda: dict(DEFAULT_CRITERION))
    others: CriterionSpec | Sequence[CriterionSpec] = DEFAULT_OTHERS
    timesteps: str | int | Sequence[int] = DEFAULT_GRID
    num_images: int = DEFAULT_NUM_IMAGES
    image_size: int | tuple[int, int] | None = None
    batch_size: int = 16
    seed: int = 0
    views: ViewOptions = field(default_factory=ViewOptions)
    cache_dir: str | Path | None = None
    array_order: str = 'rgb'
    method: str = DEFAULT_METHOD
    confidence: float = DEFAULT_CONFIDENCE
    refine: int | None = None

    def __post_init__(self) -> None:
        criterion = criterion_config('criterion', self.criterion)
        given: Any = () if self.others is None else self.others
        listed = given if is_sequence(given) else (given,)
        others = tuple(criterion_config('others', spec) for spec in listed)
        # Built once to see that they are known and take their arguments.
        for name, configs in (('criterion', [criterion]), ('others', others)):
            try:
                build_criteria(configs)
            except ValueError as error:
                raise ValueError(f'{name}: {error}') from error
        timesteps = self.timesteps
        if not isinstance(timesteps, str):
            timesteps = tuple(read_grid(timesteps))
        read_grid(timesteps)
        checked: dict[str, Any] = dict(
            criterion=criterion,
            others=others,
            timesteps=timesteps,
            num_images=whole_number('num_images', self.num_images, 1),
            method=choice('method', self.method, METHODS),
            batch_size=whole_number('batch_size', self.batch_size, 1),
            seed=seed_number('seed', self.seed),
            views=ViewOptions.parse(self.views),
            array_order=choice('array_order', self.array_order, ARRAY_ORDERS),
        )
        if not (is_number(self.confidence) and 0.5 <= self.confidence < 1):
            raise ValueError(
                f'confidence must be from 0.5 to below 1, got {shorten(self.confidence)}'
            )
        checked['confidence'] = float(self.confidence)
        if self.refine is not None:
            checked['refine'] = whole_number('refine', self.refine, 1)
        if self.image_size is not None:
            checked['image_size'] = check_image_size('image_size', self.image_size)
        if self.cache_dir is not None:
            checked['cache_dir'] = check_path('cache_dir', self.cache_dir)
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    @classmethod
    def parse(
        cls, selection: SelectionOptions | Mapping[str, Any] | str | None
    ) -> SelectionOptions:
        """Options from what a config says.

        Args:
            selection: None for the defaults, the name of a preset (``'paper'``), a dict of some of
                the fields, which may name a preset to start from as ``preset``, or options.

        Raises:
            ValueError: If a preset or a key is not known, or a value is out of range.
        """
        if isinstance(selection, cls):
            return selection
        known = [f.name for f in fields(cls)]
        given = (
            dict(preset=selection)
            if isinstance(selection, str)
            else keywords('selection', selection, [*known, 'preset'])
        )
        preset = given.pop('preset', None)
        if preset is not None and (not isinstance(preset, str) or preset not in PRESETS):
            raise ValueError(
                f'selection {shorten(preset)} is no preset: choose from {", ".join(PRESETS)}, or '
                f'give a dict of {", ".join(known)}'
            )
        if preset is not None:
            given = {**PRESETS[preset], **given}
        if given.get('views', '') is None:
            del given['views']
        return cls(**given)

    def replaced(self, **changes: Any) -> SelectionOptions:
        """These options with some replaced."""
        return self.parse({**{f.name: getattr(self, f.name) for f in fields(self)}, **changes})


def criterion_config(name: str, spec: Any) -> dict[str, Any]:
    """A criterion's config from its name or its config.

    Args:
        name: The option, for the message.
        spec: What came.

    Raises:
        ValueError: If it is neither.
    """
    if isinstance(spec, (str, type)):
        return dict(type=spec)
    config = keywords(name, spec) if isinstance(spec, Mapping) else {}
    if not isinstance(config.get('type'), (str, type)):
        raise ValueError(
            f"{name}: a criterion is given by its name, or as a dict with its name as 'type' and "
            f'its arguments; got {shorten(spec)}'
        )
    return config
