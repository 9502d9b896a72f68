# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""What a selection found: ``selection.json``, and the cache that keeps it between runs."""

from __future__ import annotations

import hashlib
import html
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmaselect.diffusion.place_search import as_arguments
from mmaselect.files import cache_root, check_regular, write_json
from mmaselect.logs import warn
from mmaselect.selection.caveats import Caveat
from mmaselect.selection.cost import SweepCost

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Raised whenever the meaning of a selection changes, so that stored results are redone. A new
#: version of the package alone costs nobody a sweep.
SELECTION_VERSION = 3
#: Entry of a stored result: a hash of all others.
CHECKSUM = 'checksum'


@dataclass(frozen=True)
class CurvePoint:
    """The score of one timestep.

    Attributes:
        timestep: 0 = clean, T - 1 = noise.
        noise_level: Standard deviation of the noise in the noisy latent.
        log_snr: ``2 ln(alpha / sigma)``; None where there is no noise.
        score: Higher is better; None where features were not finite.
        std: Standard deviation over images.
        sem: Standard error of the score.
        images: How many it was scored on; None in results from before there were races. A score
            on fewer images than those of the pick is given by its distance to the pick on the
            images that both saw: see :func:`~mmaselect.selection.race.on_one_scale`.
    """

    timestep: int
    noise_level: float
    log_snr: float | None
    score: float | None
    std: float | None = None
    sem: float | None = None
    images: int | None = None


@dataclass(frozen=True)
class Curve:
    """One criterion's scores over the grid, for one (block, feature) or the mean over them."""

    criterion: str
    timestep: int
    points: tuple[CurvePoint, ...]
    block: int | None = None
    feature: str | None = None

    @property
    def timesteps(self) -> list[int]:
        return [point.timestep for point in self.points]

    @property
    def scores(self) -> list[float]:
        """Scores, NaN where features were not finite."""
        return [math.nan if point.score is None else point.score for point in self.points]

    @property
    def best(self) -> CurvePoint:
        """The point that was picked."""
        return next(point for point in self.points if point.timestep == self.timestep)


def finalists(points: Iterable[CurvePoint]) -> list[CurvePoint]:
    """The points with a score which were scored on the most images."""
    scored = [point for point in points if point.score is not None]
    most = max((point.images or 0 for point in scored), default=0)
    return [point for point in scored if (point.images or 0) == most]


def best_point(points: Iterable[CurvePoint]) -> CurvePoint | None:
    """The point with the highest score, the cleanest of equals; None if no point has a score."""
    scored = [point for point in points if point.score is not None]
    return max(scored, key=lambda point: (point.score, -point.timestep), default=None)


def images_seen(result: SelectionResult) -> str:
    """``128 images``, or ``race over 16 to 128 images``."""
    seen = {point.images for point in result.curve.points if point.images is not None}
    if len(seen) < 2:
        return f'{result.num_images} images'
    return f'race over {min(seen)} to {max(seen)} images'


@dataclass(repr=False)
class SelectionResult:
    """The outcome of a sweep. ``to_dict`` gives the documented ``selection.json``.

    Attributes:
        timestep: The pick.
        noise_level: Its noise standard deviation.
        log_snr: Its log signal-to-noise ratio.
        criterion: Name of the criterion that picked.
        feature: Feature that was scored, or picked.
        blocks: Blocks that were scored (their scores are averaged), or picked.
        num_images: Calibration images used; in a race those that the last ones in it saw.
        seconds: Wall time of the sweep.
        model_evaluations: Transformer passes of one image each.
        curve: The deciding curve.
        others: Pick and curve of each further criterion.
        per_tap: The deciding criterion's curve of each (block, feature).
        warnings: What a careful reader should know.
        key: Fingerprint of everything that the result depends on.
        settings: What the fingerprint was made from, readable.
        interval: Between which timesteps the pick lies (95 %) when the calibration images are drawn
            again, by bootstrap; None where the criterion does not allow it.
        method: ``'race'`` or ``'full'``, see :class:`~mmaselect.selection.SelectionOptions`.
        decided: Whether the images tell the pick from timesteps far away; None where that is not
            known: see :mod:`mmaselect.selection.decision`.
        rivals: Timesteps that the images cannot tell from the pick, the pick among them.
        images_needed: About how many images would decide an undecided pick; None if unknown.
        cells: (block, feature) that are to be read: all that were scored, or the place that was
            picked from them. Empty in results of versions that did not say it.
        joined: Where several (block, feature) were picked together (``top``), the joined score of
            each with those before it, in the order of ``cells``; empty elsewhere.
        provenance: Where the result comes from, for people: ``model`` (the fields of
            ``pretrained``, with the commit that was read as ``revision``), ``dtype``, ``images``
            (``source``, ``count`` and how many were ``used``), ``versions``, and the ``command``
            of the process. Results are not looked up by it. Empty in results of versions that did
            not say it.
        contenders: (block, feature, timestep) that the images cannot tell from the best one, which
            is the first, where single places were compared. Empty in results of versions that did
            not say it.
        cost: The cost of its passes in FLOPs; None in results of versions that did not say it.

    Example:
        >>> import numpy as np
        >>> from mmaselect import select
        >>> images = [np.full((32, 32, 3), 40 * n, np.uint8) for n in range(4)]
        >>> options = dict(timesteps='0:1000:500', cache=False, progress=False)
        >>> result = select('mmaselect://dit_cifar10', images, **options)
        >>> print(result.config_snippet().splitlines()[2])
            pretrained='mmaselect://dit_cifar10',
    """

    timestep: int
    noise_level: float
    log_snr: float | None
    criterion: str
    feature: str
    blocks: list[int]
    num_images: int
    seconds: float
    model_evaluations: int
    curve: Curve
    others: dict[str, Curve] = field(default_factory=dict)
    per_tap: list[Curve] = field(default_factory=list)
    warnings: list[Caveat] = field(default_factory=list)
    key: str = ''
    settings: dict[str, Any] = field(default_factory=dict)
    interval: tuple[int, int] | None = None
    method: str = 'full'
    decided: bool | None = None
    rivals: list[int] = field(default_factory=list)
    images_needed: int | None = None
    cells: list[tuple[int, str]] = field(default_factory=list)
    provenance: dict[str, Any] = field(default_factory=dict)
    contenders: list[tuple[int, str, int]] = field(default_factory=list)
    cost: SweepCost | None = None
    joined: list[float] = field(default_factory=list)

    def __repr__(self) -> str:
        return (
            f'SelectionResult(timestep {self}, {self.where}, {self.criterion}, {images_seen(self)})'
        )

    def _repr_html_(self) -> str:
        """The pick, its curve and its warnings, as notebooks show it."""
        from mmaselect.selection.curve_plot import curve_svg

        warnings = ''.join(f'<li>{html.escape(str(warning))}</li>' for warning in self.warnings)
        model = f'{html.escape(str(self.model))}, ' if self.model else ''
        return (
            f'<div><p><b>timestep {html.escape(str(self))}</b><br>{model}'
            f'{html.escape(self.where)}, sigma {self.noise_level:.3f}, '
            f'{html.escape(self.criterion)}, {images_seen(self)}</p>{curve_svg(self)}'
            f'{f"<ul>{warnings}</ul>" if warnings else ""}</div>'
        )

    def plot(self, axes: Axes | None = None) -> Axes:
        """Draw the deciding curve with the pick and its interval.

        :func:`mmaselect.report.selection_figure` draws all curves.

        Args:
            axes: Where to draw, of matplotlib; axes of a new figure if None.

        Returns:
            Axes: What was drawn on.
        """
        from mmaselect.selection.curve_plot import plot_curve

        return plot_curve(self, axes)

    @property
    def model(self) -> str | None:
        """Name of the model; None in results of versions that did not say it."""
        source = self.provenance.get('model')
        return str(source['model']) if isinstance(source, Mapping) else None

    @property
    def place_arguments(self) -> tuple[list[int] | None, list[str]]:
        """``blocks`` and ``feature`` with which a model is read where this result says."""
        cells = self.cells or [(block, self.feature) for block in dict.fromkeys(self.blocks)]
        return as_arguments(cells, self.is_joined)

    @property
    def is_joined(self) -> bool:
        """Whether several (block, feature) were picked to be read as one map."""
        return bool(self.joined)

    def config_snippet(self) -> str:
        """Lines of an OpenMMLab config that read the model where this result says."""
        blocks, names = self.place_arguments
        lines = [] if blocks is None else [f'    blocks={blocks!r},']
        lines.append(f'    feature={names[0] if len(names) == 1 else names!r},')
        source = dict(self.provenance.get('model') or {})
        if set(source) <= {'model'}:
            pretrained: Any = source.get('model', 'THE MODEL THAT WAS SELECTED WITH')
        else:
            pretrained = source
        return '\n'.join(
            [
                'backbone=dict(',
                "    type='mmaselect.ASelecTDiT',",
                f'    pretrained={pretrained!r},',
                *lines,
                f'    timestep={self.timestep},',
                ')',
            ]
        )

    def __str__(self) -> str:
        """``75 (50 to 100)``: the pick and its interval, or ``75 (undecided, 0 to 350)``."""
        known = [] if self.decided is not False else ['undecided']
        if self.interval is not None:
            known.append(f'{self.interval[0]} to {self.interval[1]}')
        return f'{self.timestep} ({", ".join(known)})' if known else str(self.timestep)

    @property
    def where(self) -> str:
        """Where images are to be read, such as ``attention of block 2``."""
        if self.is_joined or len({feature for _, feature in self.cells}) > 1:
            return ', '.join(f'{feature} of block {block}' for block, feature in self.cells)
        blocks = list(dict.fromkeys(self.blocks))
        return f'{self.feature} of block{"s"[: len(blocks) > 1]} {", ".join(map(str, blocks))}'

    @property
    def where_scored(self) -> str:
        """Where the curve was scored: of several that were picked together, the first."""
        if not self.is_joined:
            return self.where
        block, feature = self.cells[0]
        return f'{feature} of block {block}'

    @property
    def together(self) -> str:
        """What each (block, feature) adds to those before it; empty where one was picked."""
        words = (
            [
                f'{feature} of block {block} ({score:.3f})'
                for (block, feature), score in zip(self.cells, self.joined, strict=True)
            ]
            if self.is_joined
            else []
        )
        return ' + '.join(words)

    @property
    def places_as_good(self) -> str:
        """Other places that the images cannot tell from the picked one; empty if there are none."""
        places = dict.fromkeys((block, feature) for block, feature, _ in self.contenders)
        names = [
            f'{name} of block {block}' for block, name in places if (block, name) not in self.cells
        ]
        shown, more = names[:4], len(names[4:])
        return ', '.join([*shown, *([f'{more} more'] if more else [])])

    @property
    def indecision(self) -> list[str]:
        """The warning of an undecided pick, without its first words; empty if it is decided."""
        said = [warning.text for warning in self.warnings if warning.code == 'undecided']
        return [text.partition(': ')[2] for text in said]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, with ``curve`` as a plain list of points."""
        data = asdict(self)
        data['curve'] = data['curve']['points']
        data['others'] = {
            name: dict(timestep=curve['timestep'], curve=curve['points'])
            for name, curve in data['others'].items()
        }
        data['per_tap'] = [
            dict(
                block=curve['block'],
                feature=curve['feature'],
                timestep=curve['timestep'],
                curve=curve['points'],
            )
            for curve in data['per_tap']
        ]
        return data

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> SelectionResult:
        """Inverse of :meth:`to_dict`.

        Raises:
            ValueError: If the content is not what was written. Results of versions that wrote no
                ``checksum`` are read without that check.
        """

        def curve(criterion: str, part: dict[str, Any]) -> Curve:
            return Curve(
                criterion,
                part['timestep'],
                tuple(CurvePoint(**point) for point in part['curve']),
                part.get('block'),
                part.get('feature'),
            )

        data = dict(data)
        if CHECKSUM in data and data.pop(CHECKSUM) != _checksum(data):
            raise ValueError(
                'its content is not what was written: it was edited or damaged. Select again, or '
                'remove the entry checksum if the change is meant'
            )
        name = data['criterion']
        for part, kind in (('others', Mapping), ('per_tap', Sequence), ('curve', Sequence)):
            if not isinstance(data[part], kind):
                raise ValueError(f'{part} is {data[part]!r}')
        others = {key: curve(key, part) for key, part in data.pop('others').items()}
        per_tap = [curve(name, part) for part in data.pop('per_tap')]
        interval = data.pop('interval', None)
        cost = data.pop('cost', None)
        cells = [(block, feature) for block, feature in data.pop('cells', ())]
        contenders = [tuple(cell) for cell in data.pop('contenders', ())]
        warnings = [Caveat.parse(stored) for stored in data.pop('warnings', ())]
        main = curve(name, dict(timestep=data['timestep'], curve=data.pop('curve')))
        return cls(
            **data,
            curve=main,
            others=others,
            per_tap=per_tap,
            warnings=warnings,
            cells=cells,
            contenders=contenders,
            interval=None if interval is None else tuple(interval),
            cost=None if cost is None else SweepCost.parse(cost),
        )

    def save(self, path: str | Path) -> Path:
        """Write ``selection.json`` with a checksum of its content: the whole file or none of it."""
        data = self.to_dict()
        return write_json(path, {**data, CHECKSUM: _checksum(data)})

    @classmethod
    def load(cls, path: str | Path) -> SelectionResult:
        """Read a ``selection.json``.

        Raises:
            ValueError: If the file is not one.
        """
        try:
            return cls.from_dict(json.loads(Path(path).read_text(encoding='utf-8')))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(
                f'{str(path)!r} is not a selection.json of this version ({error!r})'
            ) from error

    def check(self) -> None:
        """Check that the parts agree, as those of a sweep do.

        Raises:
            ValueError: If a value is of a wrong type or out of range, if a pick is not the best
                point of its curve, or if the key is not that of the settings.
        """
        _check_numbers('num_images', self.num_images, int, lowest=1)
        _check_numbers('model_evaluations', self.model_evaluations, int)
        _check_numbers('seconds', self.seconds, float)
        for name, found, kind in (
            ('blocks', self.blocks, int),
            ('cells', [block for block, _ in self.cells], int),
            ('cells', [feature for _, feature in self.cells], str),
            ('contenders', [n for block, _, step in self.contenders for n in (block, step)], int),
            ('contenders', [feature for _, feature, _ in self.contenders], str),
            ('warnings', [text for w in self.warnings for text in vars(w).values()], str),
            ('criterion', [self.criterion], str),
            ('feature', [self.feature], str),
            ('method', [self.method], str),
            ('joined', self.joined, float),
        ):
            if not isinstance(found, list) or any(type(value) is not kind for value in found):
                raise ValueError(f'{name} is {found!r}')
        if self.cost is not None:
            for share in (self.cost.of_full, self.cost.of_default or 0.0):
                _check_numbers('cost', share, float)
            _check_numbers('cost', self.cost.flops or 0, int)
        if self.joined and len(self.joined) != len(self.cells):
            raise ValueError(f'joined is {self.joined!r}, and cells is {self.cells!r}')
        if not isinstance(self.provenance, dict):
            raise ValueError(f'provenance is {self.provenance!r}')
        if self.key != settings_key(self.settings):
            raise ValueError(f'key {self.key!r} is not that of the settings')
        grid = self.settings.get('timesteps') if isinstance(self.settings, dict) else None
        steps = self.curve.timesteps
        if grid is None or not set(grid) <= set(steps) or steps != sorted(set(steps)):
            raise ValueError(f'the curve of {self.curve.criterion} has the timesteps {steps}')
        for curve in (self.curve, *self.others.values(), *self.per_tap):
            # Places that a search dropped are not on the finer grid.
            searched = 'search' in self.settings and set(grid) <= set(curve.timesteps) <= set(steps)
            _check_curve(curve, curve.timesteps if searched else steps)
        best = self.curve.best
        if self.timestep != best.timestep or self.noise_level != best.noise_level:
            raise ValueError(f'timestep {self.timestep!r} is not that of the curve')
        if self.decided not in (None, True, False) or type(self.decided) is int:
            raise ValueError(f'decided is {self.decided!r}')
        if not isinstance(self.rivals, list) or not set(self.rivals) <= set(steps):
            raise ValueError(f'rivals is {self.rivals!r}')
        if self.images_needed is not None:
            _check_numbers('images_needed', self.images_needed, int, lowest=1)
        if self.interval is not None and not (
            len(self.interval) == 2
            and self.interval[0] <= self.interval[1]
            and set(self.interval) <= set(self.curve.timesteps)
        ):
            raise ValueError(f'interval is {self.interval!r}')


def _check_numbers(name: str, value: Any, kind: type, lowest: float = 0) -> None:
    """Raise a ValueError unless a value is a finite number of a kind, and not below a bound."""
    kinds = (int,) if kind is int else (int, float)
    if type(value) not in kinds or not math.isfinite(value) or value < lowest:
        raise ValueError(f'{name} is {value!r}')


def _check_curve(curve: Curve, grid: Sequence[int]) -> None:
    """Raise a ValueError unless a curve has the points of a grid, and its pick is its best."""
    for point in curve.points:
        _check_numbers('timestep', point.timestep, int)
        _check_numbers('noise_level', point.noise_level, float)
        for name in ('score', 'std', 'sem', 'log_snr'):
            if (value := getattr(point, name)) is not None:
                _check_numbers(name, value, float, lowest=-math.inf)
        if point.images is not None:
            _check_numbers('images', point.images, int, lowest=1)
    if curve.timesteps != grid:
        raise ValueError(f'the curve of {curve.criterion} has the timesteps {curve.timesteps}')
    bests = [best_point(curve.points), best_point(finalists(curve.points))]
    best = {point.timestep for point in bests if point is not None}
    if type(curve.timestep) is not int or curve.timestep not in best:
        raise ValueError(
            f'timestep {curve.timestep!r} is not the best of the curve of {curve.criterion}'
        )


def _checksum(data: Mapping[str, Any]) -> str:
    """Hash of a result's entries, the same before and after they are written."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:32]


def settings_key(settings: Mapping[str, Any]) -> str:
    """Fingerprint of settings, which JSON must be able to hold."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:32]


class SelectionCache:
    """Results by key. A result is found only if nothing that matters has changed.

    Args:
        folder: Where results are kept; ``$MMASELECT_CACHE/selections`` if None.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = Path(folder).expanduser() if folder else cache_root() / 'selections'

    def path(self, key: str) -> Path:
        return self.folder / f'{key}.json'

    def find(self, key: str) -> SelectionResult | None:
        """The stored result for a key, or None.

        What cannot be read, or cannot be what a sweep stored, counts as none; a warning names it.
        """
        path = self.path(key)
        try:
            result = SelectionResult.from_dict(
                json.loads(check_regular(path).read_text(encoding='utf-8'))
            )
            result.check()
            if result.key != key:
                raise ValueError(f'its key is {result.key}')
        except FileNotFoundError:
            return None
        except (
            *(OSError, ValueError, TypeError, KeyError, AttributeError),
            RecursionError,  # brackets, thousands deep
        ) as error:
            warn(f'the stored result {path} cannot be used ({error!r}): selecting again')
            return None
        return result

    def store(self, result: SelectionResult) -> Path | None:
        """Keep a result under its key; a warning, and None, if it cannot be written."""
        path = self.path(result.key)
        try:
            return result.save(path)
        except OSError as error:
            warn(
                f'the result cannot be stored in {path} ({error}): the next start selects again. '
                f'Set selection.cache_dir, or MMASELECT_CACHE, to a folder that can be written'
            )
            return None
