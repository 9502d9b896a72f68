# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""How a timestep is selected: each option with its default and its help, written once.

The arguments of :func:`~mmaselect.apis.select_timestep`, the flags of the commands and the table in
the docs are made from the fields of :class:`SelectionOptions`. This module imports no PyTorch, so
that a command shows its ``--help`` at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from mmaselect.selection.defaults import (
    BOUND_IMAGES,
    DEFAULT_CONFIDENCE,
    DEFAULT_CRITERION,
    DEFAULT_METHOD,
    DEFAULT_NUM_IMAGES,
    DEFAULT_OTHERS,
    FIRST_IMAGES,
    METHODS,
    PRESETS,
)
from mmaselect.selection.grid import DEFAULT_GRID, TimestepGrid, read_grid

if TYPE_CHECKING:
    from mmaselect.diffusion.process import ForwardProcess
    from mmaselect.images.views import ViewOptions
    from mmaselect.selection.criteria.base import Criterion

#: A criterion by its name, or by a config with its arguments.
CriterionSpec = str | Mapping[str, Any]


def about(help: str, flag: Mapping[str, Any] | None = None, default: str = '') -> dict[str, Any]:
    """Metadata of a field of :class:`SelectionOptions`.

    Args:
        help: What the option is, for the commands and for the docs.
        flag: What :meth:`argparse.ArgumentParser.add_argument` takes in addition to the name and
            the help; None for an option that has no flag.
        default: The default in words, where its value does not say it.
    """
    return dict(help=help, flag=flag, default=default)


def size_flag(text: str) -> int | tuple[int, int]:
    """An image size as a flag has it: ``512``, or ``384x512`` for (height, width).

    Raises:
        ValueError: If the text is neither.

    Example:
        >>> size_flag('512'), size_flag('384x512')
        (512, (384, 512))
    """
    sides = [int(side) for side in text.split('x')]
    return check_image_size('image size', sides[0] if len(sides) == 1 else sides)


def images_flag(text: str) -> int | str:
    """A number of images as a flag has it: ``256``, or ``auto``.

    Raises:
        ValueError: If the text is neither.

    Example:
        >>> images_flag('256'), images_flag('auto')
        (256, 'auto')
    """
    return text if text == 'auto' else int(text)


def _default_views() -> ViewOptions:
    from mmaselect.images.views import ViewOptions

    return ViewOptions()


@dataclass(frozen=True)
class SelectionOptions:
    """How a timestep is selected. The help of each option is in the metadata of its field.

    Raises:
        ValueError: If a value is of another type, or out of range; the message names it.

    Example:
        >>> options = SelectionOptions(num_images=256)
        >>> options.num_images, options.method
        (256, 'race')
    """

    criterion: CriterionSpec = field(
        default_factory=lambda: dict(DEFAULT_CRITERION),
        metadata=about(
            'criterion that picks: its name (`mmaselect list --criteria` has them), or in Python '
            'its config',
            flag=dict(metavar='NAME'),
        ),
    )
    others: CriterionSpec | Sequence[CriterionSpec] = field(
        default=DEFAULT_OTHERS,
        metadata=about(
            'criteria to score on the same images for comparison, without a say in the pick: one, '
            'several or none',
            flag=dict(nargs='*', metavar='NAME'),
        ),
    )
    timesteps: str | int | Sequence[int] = field(
        default=DEFAULT_GRID,
        metadata=about(
            'timesteps to score, 0 = clean: a grid, without STOP, or a list separated by commas',
            flag=dict(metavar='START:STOP:STEP'),
        ),
    )
    num_images: int | str = field(
        default=DEFAULT_NUM_IMAGES,
        metadata=about(
            f'calibration images to use at most, or `auto`: {FIRST_IMAGES}, and while the pick is '
            f'undecided twice as many, up to {BOUND_IMAGES:,}',
            flag=dict(type=images_flag, metavar='N'),
        ),
    )
    image_size: int | tuple[int, int] | None = field(
        default=None,
        metadata=about(
            'side that images are scaled and cropped to, in pixels, or height and width '
            '(`384x512` as a flag)',
            flag=dict(type=size_flag, metavar='PIXELS'),
            default="the model's own training size",
        ),
    )
    batch_size: int = field(
        default=16,
        metadata=about('images per transformer pass', flag=dict(type=int, metavar='N')),
    )
    seed: int = field(
        default=0,
        metadata=about(
            'seed of the choice of images, of their views and of the noise',
            flag=dict(type=int, metavar='N'),
        ),
    )
    views: ViewOptions = field(
        default_factory=_default_views,
        metadata=about(
            'how two random views of each image are made, for criteria that compare them: a dict '
            'of `scale`, `flip`, `noise` and `pixels`',
            default='see `ViewOptions`',
        ),
    )
    cache_dir: str | Path | None = field(
        default=None,
        metadata=about(
            'folder that keeps results', flag=dict(metavar='FOLDER'), default='the cache folder'
        ),
    )
    array_order: str = field(
        default='rgb',
        metadata=about('order of channels of data sets in memory, `rgb` or `bgr`'),
    )
    method: str = field(
        default=DEFAULT_METHOD,
        metadata=about(
            '`race` drops a timestep once it cannot be the best any more; `full` scores every '
            'timestep on every image',
            flag=dict(choices=METHODS),
        ),
    )
    confidence: float = field(
        default=DEFAULT_CONFIDENCE,
        metadata=about(
            'how sure a race must be that a timestep is worse than the leader before it drops it',
            flag=dict(type=float, metavar='P'),
        ),
    )
    refine: int | None = field(
        default=None,
        metadata=about(
            'finer steps at the end: also score the timesteps this far to both sides of the '
            'best one, until neither is better',
            flag=dict(type=int, metavar='SPACING'),
            default='no finer steps',
        ),
    )
    top: int = field(
        default=1,
        metadata=about(
            'in a search of blocks and features: how many pairs (block, feature) are picked, each '
            'to complement those before it; a backbone joins them into one map',
            flag=dict(type=int, metavar='N'),
        ),
    )

    def __post_init__(self) -> None:
        from mmaselect.images.sources import ARRAY_ORDERS
        from mmaselect.images.views import ViewOptions

        criterion = criterion_config('criterion', self.criterion)
        given: Any = () if self.others is None else self.others
        listed = given if is_sequence(given) else (given,)
        others = tuple(criterion_config('others', spec) for spec in listed)
        timesteps = self.timesteps
        if not isinstance(timesteps, str):
            timesteps = tuple(read_grid(timesteps))
        read_grid(timesteps)
        checked: dict[str, Any] = dict(
            criterion=criterion,
            others=others,
            timesteps=timesteps,
            num_images=_check_num_images(self.num_images),
            method=choice('method', self.method, METHODS),
            batch_size=whole_number('batch_size', self.batch_size, 1),
            seed=seed_number('seed', self.seed),
            views=ViewOptions.parse(self.views),
            array_order=choice('array_order', self.array_order, ARRAY_ORDERS),
            top=whole_number('top', self.top, 1),
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
        _ = self.criteria  # built here, so that a wrong argument of one is found at once

    @cached_property
    def criteria(self) -> dict[str, Criterion]:
        """The criteria by their names in results, without any image; the first one decides."""
        from mmaselect.selection.scoring import build_criteria

        configs = self.criterion_configs
        return build_criteria(configs, ['criterion', *['others'] * (len(configs) - 1)])

    @property
    def grows(self) -> bool:
        """Whether a selection takes more images while its pick is undecided.

        A criterion that does not say what each image adds cannot tell.
        """
        deciding = next(iter(self.criteria.values()))
        return self.num_images == 'auto' and deciding.race_from is not None

    @property
    def first_images(self) -> int:
        """Images on which a selection may end."""
        return self.num_images if isinstance(self.num_images, int) else FIRST_IMAGES

    @property
    def most_images(self) -> int:
        """Images that a selection takes at most."""
        return BOUND_IMAGES if self.grows else self.first_images

    @property
    def criterion_configs(self) -> list[dict[str, Any]]:
        """Configs of the criteria; the first one decides."""
        configs: Any = (self.criterion, *self.others)
        return [dict(config) for config in configs]

    def grid(self, num_train_timesteps: int) -> TimestepGrid:
        """The timesteps that are searched, for a training schedule of some length.

        Raises:
            ValueError: If the grid leaves the schedule, or the finer steps are not finer.
        """
        grid = TimestepGrid.parse(self.timesteps, num_train_timesteps, self.refine)
        if self.refine is not None and not grid.has_finer_steps:
            raise ValueError(
                f'refine={self.refine} is not finer than timesteps={shorten(self.timesteps)}: give '
                f'a spacing below theirs, or None'
            )
        return grid

    def check_schedule(self, process: ForwardProcess) -> None:
        """Check that the grid fits a model's training schedule.

        Raises:
            ValueError: See :meth:`grid`.
        """
        self.grid(process.num_train_timesteps)

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
        known = cls.names()
        given = (
            dict(preset=selection)
            if isinstance(selection, str)
            else keywords('selection', selection, [*known, 'preset'])
        )
        preset = given.pop('preset', None)
        if preset is not None and (not isinstance(preset, str) or preset not in PRESETS):
            raise ValueError(
                f'selection {shorten(preset)} is not a preset: choose from '
                f'{", ".join(PRESETS)}, or give a dict of {", ".join(known)}'
            )
        if preset is not None:
            given = {**PRESETS[preset], **given}
        if given.get('views', '') is None:
            del given['views']
        return cls(**given)

    def replaced(self, preset: str | None = None, **changes: Any) -> SelectionOptions:
        """These options with some replaced, first by those of a preset.

        A stated number of images is kept: a preset's stands in for ``'auto'`` alone.

        Raises:
            ValueError: If a preset or a name is not known, or a value is out of range.
        """
        if not changes and preset is None:
            return self
        stated: dict[str, Any] = dict(preset=preset)
        if preset is None or isinstance(preset, str):
            stated = dict(PRESETS.get(preset, stated)) if preset else {}
        if self.num_images != 'auto':
            stated.pop('num_images', None)
        return self.parse({**{n: getattr(self, n) for n in self.names()}, **stated, **changes})

    @classmethod
    def elsewhere(cls) -> dict[str, str]:
        """The names of all options, and how a face that takes ``selection`` is given them."""
        return {name: f'selection=dict({name}=...)' for name in cls.names()}

    @classmethod
    def names(cls) -> list[str]:
        """The names of all options."""
        return [f.name for f in fields(cls)]


def not_selected(timestep: Any, **given: Any) -> str | None:
    """The sentence for arguments of a selection next to a timestep that is not selected.

    Args:
        timestep: The timestep, or several.
        given: The arguments; None was not given.

    Returns:
        str | None: The sentence; None if there is no such argument.

    Example:
        >>> not_selected(100, calibration='photos', selection=None)
        "calibration says how timestep='auto' is selected, and timestep is 100"
    """
    names = [name for name, value in given.items() if value is not None]
    if not names:
        return None
    says = 'says' if len(names) == 1 else 'say'
    return (
        f"{' and '.join(names)} {says} how timestep='auto' is selected, and timestep is {timestep}"
    )


def _check_num_images(num_images: Any) -> int | str:
    if isinstance(num_images, str):
        if num_images == 'auto':
            return num_images
        raise ValueError(
            f"num_images must be a whole number of 1 or more, or 'auto', got {shorten(num_images)}"
        )
    return whole_number('num_images', num_images, 1)


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
