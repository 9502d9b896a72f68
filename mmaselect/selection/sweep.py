# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""The sweep: calibration images at the timesteps of a grid, and the timestep that scores best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmaselect.diffusion import FrozenDiT
from mmaselect.diffusion.pass_cost import PassCost
from mmaselect.images import CalibrationSet, ImageSource
from mmaselect.logs import log, warn
from mmaselect.selection.conclude import conclude, warn_of_images
from mmaselect.selection.cost import SweepCost, search_in_words
from mmaselect.selection.identity import UNREADABLE, sweep_settings
from mmaselect.selection.options import SelectionOptions
from mmaselect.selection.partial import PartialSums
from mmaselect.selection.provenance import provenance
from mmaselect.selection.race import round_ends
from mmaselect.selection.ranks import from_rank_zero, gather_answers, rank_and_size
from mmaselect.selection.result import SelectionCache, SelectionResult, settings_key
from mmaselect.selection.scoring import StepScores
from mmaselect.selection.stages import Stages
from mmaselect.selection.together import check_top, pick_together


class Sweep:
    """Scores a timestep grid on calibration images and picks the best timestep.

    By default a race: a timestep that cannot be the best any more gets no further images, see
    :mod:`mmaselect.selection.race`. One VAE encoding an image; one transformer pass for each image,
    timestep and noise draw; an image keeps its draws for all timesteps. Images are shared among
    ranks, the sums are reduced, and every rank returns the same result.

    Args:
        dit: The frozen model; its blocks and features are all scored, and the deciding curve is
            the mean over them. Where it leaves blocks or features open (``'auto'``), the place is
            picked with the timestep: ``cells`` of the result has it, and
            :meth:`~mmaselect.diffusion.FrozenDiT.settle` takes it.
        calibration: The images: their number and size are those of the set, whatever the options
            say. A sweep with ``num_images='auto'`` may end before it has taken all of them.
        options: How the timestep is selected: :class:`~mmaselect.selection.SelectionOptions`, or
            what its ``parse`` takes.
        cache: Where results are kept; None for no cache.

    Attributes:
        grid (TimestepGrid): The timesteps.
        round_ends (list[int]): How many images a timestep has seen after each round; one round, of
            all images, where there is no race and nothing to grow.
        stored_at (Path | None): Where the result of the last run is kept, on rank 0.
        was_stored (bool): Whether the last run found its result there, and computed nothing.

    Raises:
        ValueError: If the grid is out of range, the finer one is not finer, or a criterion needs
            labels that the calibration set does not have; or several (block, feature) are wanted
            where one is not picked.
    """

    def __init__(
        self,
        dit: FrozenDiT,
        calibration: CalibrationSet,
        options: SelectionOptions | Mapping[str, Any] | str | None = None,
        cache: SelectionCache | None = None,
    ) -> None:
        self.dit = dit
        self.options = options = SelectionOptions.parse(options)
        self.cache = cache
        self.grid = options.grid(dit.num_train_timesteps)
        for name, criterion in options.criteria.items():
            if criterion.needs_labels and not calibration.labels_available:
                raise ValueError(
                    f'{name} needs labels, but the calibration images have none. Use a labeled '
                    f'dataset for calibration, or a label-free criterion'
                )
        check_top(options, dit)
        compares_views = any(criterion.views for criterion in options.criteria.values())
        self.calibration = calibration.with_views(options.views if compares_views else None)
        self.round_ends = round_ends(
            next(iter(options.criteria.values())),
            len(calibration),
            options.method == 'race',
            options.first_images if options.grows else None,
        )
        self.stored_at: Path | None = None
        self.was_stored = False

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
            num_images=options.most_images,
            seed=options.seed,
        )
        return cls(dit, calibration, options, cache)

    @property
    def races(self) -> bool:
        """Whether timesteps may be dropped before they saw all images."""
        return self.options.method == 'race' and len(self.round_ends) > 1

    def settings(self) -> dict[str, Any]:
        """Everything that the result depends on, except the batch size and the number of ranks.

        All ranks call it together: each reads its share of the images.

        Raises:
            ValueError: If a calibration image cannot be read.
            RuntimeError: If ranks see different images, models or versions.
        """
        race: dict[str, Any] = {}
        if self.races:
            race = dict(rounds=self.round_ends, confidence=self.options.confidence)
        if self.options.grows and len(self.calibration) > self.options.first_images:
            race |= dict(rounds=self.round_ends, settles_from=self.options.first_images)
        return sweep_settings(self.dit, self.calibration, self.options, self.grid, race or None)

    def run(self, progress: bool = True) -> SelectionResult:
        """Find the stored result, or sweep.

        A sweep that was killed resumes where it was, if it had a cache and ran for long enough.

        Args:
            progress: Draw a progress bar on rank 0.

        Raises:
            ValueError: If a calibration image cannot be read, or there are too few that differ.
            RuntimeError: If no timestep gave finite features, or a rank is lost or sees something
                else than the others.
        """
        rank, world_size = rank_and_size()
        self.stored_at = None
        settings = self.settings()
        if UNREADABLE in settings['code'] and self.cache is not None:
            warn(f'{settings["code"][UNREADABLE]}: no stored result is looked for or kept')
            self.cache = None
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

        deciding = next(iter(self.options.criteria.values()))
        doubts = warn_of_images(len(self.calibration), settings['distinct_images'], deciding)
        cost = None
        if self.dit.search is not None:
            size = self.calibration.image_size
            cost = gather_answers(lambda tell: PassCost.of(self.dit, size))[0]
            if rank == 0:
                log(search_in_words(self.dit, cost))
        partial = None
        if self.cache is not None:
            split = (self.options.batch_size, rank, world_size)
            partial = PartialSums(self.cache.folder, key, split, self.calibration.order)
        stages = Stages(
            self.dit, self.calibration, self.options, self.grid, self.round_ends, partial, cost
        )
        passes = stages.run(progress)
        result = self._result(stages.scores(), stages)
        if self.options.top > 1 and cost is not None:  # a place is searched: see check_top
            passes[cost.whole] += pick_together(result, stages, self.options.top)
        result.warnings += doubts
        result.seconds = round(stages.seconds, 3)
        result.model_evaluations = passes.total()
        # A race may end on fewer images than a full sweep, which has no way to end early.
        images = max(result.num_images, min(self.options.first_images, len(self.calibration)))
        full = len(self.grid.reachable) * images * stages.readings
        result.cost = SweepCost.of(passes, full, cost)
        result.key, result.settings = key, settings
        result.provenance = provenance(self.dit, self.calibration)
        # Sums are reduced in one order everywhere, yet only rank 0's clock is the clock.
        result = from_rank_zero(result)
        if self.cache is not None:
            if rank == 0:
                self.stored_at = self.cache.store(result)
            if from_rank_zero(self.stored_at) is not None and partial is not None:
                partial.clear()
        return result

    def _result(self, steps: Sequence[StepScores], stages: Stages) -> SelectionResult:
        """What the scores say, and of what."""
        found = conclude(
            steps,
            list(self.options.criteria),
            stages.places,
            str(self.dit.dtype),
            len(self.calibration),
            stages.done.at_ends,
            self.grid.coarse,
            self.dit.name,
            next(iter(self.options.criteria.values())).race_from or 0,
        )
        decision, searched = found.decision, stages.places.are_searched
        return SelectionResult(
            timestep=found.curve.timestep,
            noise_level=found.curve.best.noise_level,
            log_snr=found.curve.best.log_snr,
            criterion=stages.deciding,
            feature=','.join(dict.fromkeys(feature for _, feature in found.read)),
            blocks=[block for block, _ in found.read] if searched else list(self.dit.blocks),
            cells=list(found.read),
            contenders=list(found.contenders),
            num_images=found.curve.best.images or len(self.calibration),
            seconds=0.0,
            model_evaluations=0,
            curve=found.curve,
            others=found.others,
            per_tap=found.per_tap,
            warnings=found.warnings,
            interval=found.interval,
            method='race' if self.races else 'full',
            decided=None if decision is None else decision.decided,
            rivals=[] if decision is None else list(decision.rivals),
            images_needed=None if decision is None else decision.images_needed,
        )
