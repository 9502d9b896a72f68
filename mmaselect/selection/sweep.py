# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""The sweep: calibration images at the timesteps of a grid, and the timestep that scores best."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from mmaselect.checks import shorten
from mmaselect.diffusion import FrozenDiT
from mmaselect.images import CalibrationBatch, CalibrationSet, ImageSource
from mmaselect.images.views import ViewOptions
from mmaselect.logs import warn
from mmaselect.selection.conclude import build_curve, conclude
from mmaselect.selection.defaults import DEFAULT_CRITERION, DEFAULT_OTHERS
from mmaselect.selection.grid import DEFAULT_GRID, finer_grid, parse_timesteps
from mmaselect.selection.identity import code_identity, model_identity
from mmaselect.selection.options import SelectionOptions
from mmaselect.selection.partial import PartialSums, SweepProgress, reset
from mmaselect.selection.race import contenders, round_ends, round_scores
from mmaselect.selection.ranks import check_agreement, from_rank_zero, gather_answers, rank_and_size
from mmaselect.selection.result import (
    SELECTION_VERSION,
    SelectionCache,
    SelectionResult,
    settings_key,
)
from mmaselect.selection.scoring import (
    CriterionConfig,
    EncodedBatch,
    Meters,
    Reading,
    StepScores,
    build_criteria,
    draw_readings,
    encode_views,
    read_meters,
    score_step,
    start_meters,
    view_readings,
)
from mmaselect.terminal.progress import progress_bar


class Sweep:
    """Scores a timestep grid on calibration images and picks the best timestep.

    By default a race: a timestep that cannot be the best any more gets no further images, see
    :mod:`mmaselect.selection.race`. One VAE encoding an image; one transformer pass for each image,
    timestep and noise draw; an image keeps its draws for all timesteps. Images are shared among
    ranks, the sums are reduced, and every rank returns the same result.

    Args:
        dit: The frozen model; its blocks and features are all scored, and the deciding curve is
            the mean over them.
        calibration: The images.
        timesteps: See :func:`~mmaselect.selection.grid.parse_timesteps`.
        criterion: Config of the criterion that picks.
        others: Configs of criteria that are scored beside it and never decide.
        seed: Of the noise.
        batch_size: Images per transformer pass.
        views: How random views of the images are made, for criteria that compare them; the
            defaults of :class:`~mmaselect.images.views.ViewOptions` if None.
        cache: Where results are kept; None for no cache.
        method: ``'race'``, or ``'full'`` for every timestep on every image.
        confidence: Of the race.
        refine: Spacing of a finer grid around the timesteps that may be the best, or None.

    Attributes:
        round_ends (list[int]): How many images a timestep has seen after each round of the race;
            one round, of all images, where there is none.
        stored_at (Path | None): Where the result of the last run is kept, on rank 0.
        was_stored (bool): Whether the last run found its result there, and computed nothing.

    Raises:
        ValueError: If the grid is out of range, the finer one is no finer, or a criterion needs
            labels that the calibration set does not have.
    """

    def __init__(
        self,
        dit: FrozenDiT,
        calibration: CalibrationSet,
        timesteps: str | int | Sequence[int] = DEFAULT_GRID,
        criterion: CriterionConfig = DEFAULT_CRITERION,
        others: CriterionConfig | Sequence[CriterionConfig] = DEFAULT_OTHERS,
        seed: int = SelectionOptions.seed,
        batch_size: int = SelectionOptions.batch_size,
        cache: SelectionCache | None = None,
        views: ViewOptions | None = None,
        method: str = SelectionOptions.method,
        confidence: float = SelectionOptions.confidence,
        refine: int | None = SelectionOptions.refine,
    ) -> None:
        options = SelectionOptions(
            timesteps=timesteps,
            criterion=criterion,
            others=others,
            seed=seed,
            batch_size=batch_size,
            views=ViewOptions() if views is None else views,
            method=method,
            confidence=confidence,
            refine=refine,
        )
        self.dit = dit
        self.calibration = calibration
        self.timesteps = parse_timesteps(options.timesteps, dit.num_train_timesteps)
        self.refine = options.refine
        self._finer: list[int] = []
        if self.refine is not None:
            self._finer = finer_grid(self.timesteps, self.timesteps, self.refine)
            if not self._finer:
                raise ValueError(
                    f'refine={self.refine} is no finer than timesteps='
                    f'{shorten(options.timesteps)}: give a spacing below theirs, or None'
                )
        self.configs = [dict(config) for config in (options.criterion, *options.others)]
        self.prototypes = build_criteria(self.configs)
        self.seed = options.seed
        self.batch_size = options.batch_size
        self.confidence = options.confidence
        self.round_ends = round_ends(
            next(iter(self.prototypes.values())), len(calibration), options.method == 'race'
        )
        self.cache = cache
        self.stored_at: Path | None = None
        self.was_stored = False
        for name, prototype in self.prototypes.items():
            if prototype.needs_labels and not calibration.labels_available:
                raise ValueError(
                    f'{name} needs labels, but the calibration images have none. Use a labeled '
                    f'dataset for calibration, or a label-free criterion'
                )
        self.draws = max(prototype.draws for prototype in self.prototypes.values())
        self.views = None
        if any(prototype.views for prototype in self.prototypes.values()):
            self.views = options.views
            self.calibration = calibration.with_views(self.views)

    @classmethod
    def from_options(
        cls,
        dit: FrozenDiT,
        calibration: CalibrationSet,
        options: SelectionOptions,
        cache: SelectionCache | None = None,
    ) -> Sweep:
        """A sweep as options describe it; the calibration set has its images and size already."""
        return cls(
            dit,
            calibration,
            timesteps=options.timesteps,
            criterion=options.criterion,
            others=options.others,
            seed=options.seed,
            batch_size=options.batch_size,
            cache=cache,
            views=options.views,
            method=options.method,
            confidence=options.confidence,
            refine=options.refine,
        )

    @classmethod
    def of_source(
        cls,
        dit: FrozenDiT,
        source: ImageSource,
        options: SelectionOptions,
        cache: SelectionCache | None = None,
    ) -> Sweep:
        """A sweep as options describe it, over images that they choose from a source."""
        calibration = CalibrationSet(
            source,
            image_size=options.image_size or dit.native_size,
            num_images=options.num_images,
            seed=options.seed,
        )
        return cls.from_options(dit, calibration, options, cache)

    @property
    def races(self) -> bool:
        """Whether timesteps may be dropped before they saw all images."""
        return len(self.round_ends) > 1

    # -- identity ---------------------------------------------------------------------------------
    def settings(self) -> dict[str, Any]:
        """Everything that the result depends on, except the batch size and the number of ranks.

        All ranks call it together: each reads its share of the images.

        Raises:
            ValueError: If a calibration image cannot be read.
            RuntimeError: If ranks see different images, models or versions.
        """
        rank, world_size = rank_and_size()
        model = gather_answers(lambda tell: self._model_settings())[rank]
        if world_size > 1:
            check_agreement(gather_answers(lambda tell: self._facts(model)))
        shares = gather_answers(lambda tell: self._hash_share(rank, world_size, tell))
        hashes = {position: found for share in shares for position, found in share.items()}
        settings = dict(
            selection_version=SELECTION_VERSION,
            **model,
            images=self.calibration.fingerprint({p: image for p, (image, _) in hashes.items()}),
            labels=self._labels_fingerprint([hashes[p][1] for p in range(len(hashes))]),
            num_images=len(self.calibration),
            image_size=self.calibration.image_size,
            timesteps=self.timesteps,
            criteria=self.configs,
            seed=self.seed,
            views=None if self.views is None else asdict(self.views),
        )
        if self.refine is not None:
            settings['refine'] = self.refine
        if self.races:
            settings['race'] = dict(rounds=self.round_ends, confidence=self.confidence)
        return from_rank_zero(json.loads(json.dumps(settings, default=str)))

    def _model_settings(self) -> dict[str, Any]:
        """What the result depends on beside images and options: model, code, versions."""
        code: dict[str, str] = {}
        try:
            for cls in (*map(type, self.prototypes.values()), type(self.dit.family)):
                code.update(code_identity(cls))
        except LookupError as error:
            if self.cache is not None:
                warn(f'{error}: no stored result is looked for, and none is stored')
            self.cache = None
        timesteps = sorted([*self.timesteps, *self._finer])
        return dict(model_identity(self.dit, timesteps, self._num_tokens()), code=code)

    def _facts(self, model: dict[str, Any]) -> dict[str, Any]:
        """What must be the same on all ranks, by its name in a message."""
        images = self.calibration
        ends = {0, len(images) - 1}
        names = [Path(images.source.name(index)).name for index in images.chosen]
        return {
            'the number of images': len(images.source),
            'the names of the images': hashlib.sha256('\n'.join(names).encode()).hexdigest()[:12],
            'the pixels of the first and the last image': [
                images.hash_image(position)[:12] for position in sorted(ends)
            ],
            'the size of the images': images.image_size,
            'the timestep grid': self.timesteps,
            'the seed': self.seed,
            **{f"the model's {name}": value for name, value in model.items()},
        }

    def _hash_share(
        self, rank: int, world_size: int, tell: Callable[[str], None]
    ) -> dict[int, tuple[str, str]]:
        """Hashes of this rank's images, and of their labels where a criterion reads them."""
        count = len(self.calibration)
        hashes = {}
        for position in range(rank, count, world_size):
            tell(f'reading {self.calibration.source.name(self.calibration.chosen[position])}')
            image = self.calibration.hash_image(position)
            label = ''
            if any(prototype.needs_labels for prototype in self.prototypes.values()):
                values = self.calibration.labels([position])
                label = '' if values is None else _hash(values.numpy().tobytes())
            hashes[position] = (image, label)
        return hashes

    @staticmethod
    def _labels_fingerprint(labels: Sequence[str]) -> str | None:
        return _hash(''.join(labels).encode()) if any(labels) else None

    # -- running ----------------------------------------------------------------------------------
    def run(self, progress: bool = True) -> SelectionResult:
        """Find the stored result, or sweep.

        A sweep that was killed goes on where it was, if it had a cache and ran for long enough.

        Args:
            progress: Draw a progress bar on rank 0.

        Raises:
            ValueError: If a calibration image cannot be read.
            RuntimeError: If no timestep gave finite features, or a rank is lost or sees something
                else than the others.
        """
        rank, world_size = rank_and_size()
        start = time.perf_counter()
        self.stored_at = None
        settings = self.settings()
        key = settings_key(settings)
        # One rank looks, all follow: a cache folder that only some ranks see must not make them
        # disagree on whether to sweep.
        found = gather_answers(
            lambda tell: self.cache.find(key) if self.cache and rank == 0 else None
        )[0]
        self.was_stored = found is not None
        if found is not None:
            self.stored_at = self.cache.path(key) if self.cache else None
            return found

        meters = {step: self._start_meters() for step in self.timesteps}
        partial = None
        if self.cache is not None:
            partial = PartialSums(
                self.cache.folder, key, (self.batch_size, rank, world_size), self.calibration.order
            )
        done = self._resume(meters, partial)
        start -= done.seconds
        while True:
            shares = gather_answers(
                lambda tell: self._score_share(meters, done, partial, progress, start, tell)
            )
            if not self._next_stage(meters, done):
                break
        result = self._result([self._read(meters, done, step) for step in sorted(meters)], done)
        result.seconds = round(time.perf_counter() - start, 3)
        result.model_evaluations = sum(shares)
        result.key, result.settings = key, settings
        # Sums are reduced in one order everywhere, yet only rank 0's clock is the clock.
        result = from_rank_zero(result)
        if self.cache is not None:
            if rank == 0:
                self.stored_at = self.cache.store(result)
            if from_rank_zero(self.stored_at) is not None and partial is not None:
                partial.clear()
        return result

    def _start_meters(self) -> Meters:
        return start_meters(self.prototypes, self.dit.keys, self.dit.device)

    def _resume(self, meters: dict[int, Meters], partial: PartialSums | None) -> SweepProgress:
        """Where a killed sweep was, its sums in the meters; or the beginning."""
        rank, world_size = rank_and_size()
        first = SweepProgress(steps=list(self.timesteps), rounds=dict.fromkeys(self.timesteps, 0))

        def load(tell: Callable[[str], None]) -> SweepProgress:
            tell('looking for the sums of a sweep that was stopped')
            return (partial.load(meters, self._start_meters) if partial else None) or first

        found = gather_answers(load)
        # Ranks are in one stage; but some may have been killed at the end of the one before.
        latest = max(found, key=lambda done: done.stage)
        for number, done in enumerate(found):
            if done.stage != latest.stage and (
                done.stage != latest.stage - 1
                or done.units < sum(len(s) for _, s in self._work(done, number, world_size))
            ):
                warn('ranks were stopped too far apart: the selection starts from its beginning')
                reset(meters, self.timesteps)
                return first
        meters.update({s: self._start_meters() for s in latest.rounds if s not in meters})
        mine = found[rank]
        return mine if mine.stage == latest.stage else replace(mine, **latest.plan, units=0)

    def _work(
        self, done: SweepProgress, rank: int, world_size: int
    ) -> Iterator[tuple[list[int], list[int]]]:
        """A rank's batches in a stage, by positions of their images, and the timesteps of each."""
        order = self.calibration.order
        start = 0
        for number, end in enumerate(self.round_ends[: done.goal]):
            steps = [step for step in done.steps if done.rounds[step] <= number]
            share = [order[place] for place in range(start, end) if place % world_size == rank]
            if steps:
                for first in range(0, len(share), self.batch_size):
                    yield share[first : first + self.batch_size], steps
            start = end

    def _score_share(
        self,
        meters: dict[int, Meters],
        done: SweepProgress,
        partial: PartialSums | None,
        progress: bool,
        start: float,
        tell: Callable[[str], None],
    ) -> int:
        """Add this rank's images to the scores of a stage; returns its evaluations so far."""
        rank, world_size = rank_and_size()
        work = list(self._work(done, rank, world_size))
        before, unit = done.units, 0
        name = 'selecting timestep'
        if done.refined:
            name += f': {len(done.steps)} around the best'
        elif done.stage:
            name += f': {len(done.steps)} of {len(self.timesteps)} left'
        with progress_bar('images x timesteps', disable=not (progress and rank == 0)) as bar:
            total = sum(len(positions) * len(steps) for positions, steps in work)
            task = bar.add_task(name, total=total)
            for positions, steps in work:
                encoded = None
                for step in steps:
                    unit += 1
                    if unit > before:
                        tell(f'scoring timestep {step}, images {positions}')
                        encoded = encoded or self._encode(self.calibration.batch(positions))
                        done.evaluations += score_step(self.dit, encoded, step, meters[step])
                        done.units = unit
                        done.seconds = time.perf_counter() - start
                        if partial is not None:
                            partial.save_if_due(meters, done)
                    bar.advance(task, len(positions))
        if partial is not None and self.races:
            # Nobody begins the next stage before all have this one on disk.
            partial.save(meters, done)
        return done.evaluations

    def _next_stage(self, meters: dict[int, Meters], done: SweepProgress) -> bool:
        """Whether there is more to do once all ranks have ended a stage; ``done`` then says what.

        All ranks call it together.
        """
        done.rounds.update(dict.fromkeys(done.steps, done.goal))
        scores = [self._read(meters, done, step) for step in done.steps]
        last, goal = len(self.round_ends), done.goal
        if goal < last:
            ended = done.at_ends.setdefault(self.round_ends[goal - 1], {})
            done.at_ends[self.round_ends[goal - 1]] = {**ended, **round_scores(scores)}
            left = contenders(scores, next(iter(self.prototypes)), self.dit.keys, self.confidence)
            left = from_rank_zero(left)
        else:
            left = [step.timestep for step in scores if step.is_finite]
        if not left:
            # Everybody who led has features that overflow on an image: back to all the others.
            out = [step for step in sorted(meters) if step not in done.steps]
            left = [step for step in out if self._read(meters, done, step).is_finite]
            goal = last
            if not left:
                return False
        elif goal < last and len(left) > 1:
            goal += 1
        else:
            if self.refine is None or done.refined:
                return False
            done.refined = True
            leaders = from_rank_zero(self._leaders(scores))
            finer = finer_grid(self.timesteps, leaders, self.refine)
            if not finer:
                return False
            meters.update({step: self._start_meters() for step in finer})
            done.rounds.update(dict.fromkeys(finer, 0))
            left = sorted([*leaders, *finer])
        done.stage, done.steps, done.goal, done.units = done.stage + 1, left, goal, 0
        return True

    def _leaders(self, scores: Sequence[StepScores]) -> list[int]:
        """Who may be the best; one alone by a criterion that does not say what images add."""
        deciding = next(iter(self.prototypes))
        if all((tap, deciding) in step.per_image for step in scores for tap in self.dit.keys):
            return contenders(scores, deciding, self.dit.keys, self.confidence)
        return [build_curve(scores, deciding, self.dit.keys).timestep]

    def _read(self, meters: dict[int, Meters], done: SweepProgress, step: int) -> StepScores:
        """Scores of a timestep on the images that it has seen, over all ranks."""
        images = self.round_ends[done.rounds[step] - 1]
        return read_meters(meters[step], self.dit, step, self._num_tokens(), images)

    def _encode(self, batch: CalibrationBatch) -> EncodedBatch:
        """Latents and noise of a batch: of the images if a criterion reads them, of their views."""
        draws: tuple[Reading, ...] = ()
        views: tuple[Reading, ...] = ()
        if self.draws:
            latent = self.dit.encode(batch.images.to(self.dit.device))
            draws = draw_readings(latent, batch.indices, self.draws, self.seed)
        if self.views is not None:
            assert batch.views is not None  # the calibration set got the same options
            latents = encode_views(self.dit, batch.views)
            views = view_readings(latents, batch.indices, self.seed, self.views.noise)
        return EncodedBatch(
            draws,
            batch.indices,
            None if batch.labels is None else batch.labels.to(self.dit.device),
            views,
            None if batch.views is None else batch.views.where,
        )

    def _result(self, steps: Sequence[StepScores], done: SweepProgress) -> SelectionResult:
        """What the scores say, and of what."""
        names = list(self.prototypes)
        found = conclude(
            steps,
            names,
            self.dit.keys,
            str(self.dit.dtype),
            len(self.calibration),
            done.at_ends,
            self.timesteps,
            self.dit.name,
        )
        return SelectionResult(
            timestep=found.curve.timestep,
            noise_level=found.curve.best.noise_level,
            log_snr=found.curve.best.log_snr,
            criterion=names[0],
            feature=','.join(self.dit.feature_names),
            blocks=list(self.dit.blocks),
            num_images=found.curve.best.images or len(self.calibration),
            seconds=0.0,
            model_evaluations=0,
            curve=found.curve,
            others=found.others,
            per_tap=found.per_tap,
            warnings=found.warnings,
            interval=found.interval,
            method='race' if self.races else 'full',
        )

    def _num_tokens(self) -> int:
        """Image tokens of one calibration image."""
        size = self.calibration.image_size
        height, width = (size, size) if isinstance(size, int) else size
        return math.ceil(height / self.dit.stride) * math.ceil(width / self.dit.stride)


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
