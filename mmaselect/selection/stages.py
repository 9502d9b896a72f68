# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""The stages of a sweep: which timesteps are scored on which images, and which are left after each.

In one stage, some timesteps are scored on the images that they have not seen yet, up to the end of
a round of the race. All ranks are in the same stage, and end it together.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import product

from mmaselect.diffusion import FrozenDiT, TapKey
from mmaselect.diffusion.pass_cost import PassCost
from mmaselect.images import CalibrationBatch, CalibrationSet
from mmaselect.logs import warn
from mmaselect.selection.arms import Arm, Places, taps_by_timestep
from mmaselect.selection.conclude import choose_winner, settles
from mmaselect.selection.grid import TimestepGrid
from mmaselect.selection.options import SelectionOptions
from mmaselect.selection.partial import PartialSums, SweepProgress, reset
from mmaselect.selection.race import contending, round_scores
from mmaselect.selection.ranks import from_rank_zero, gather_answers, rank_and_size
from mmaselect.selection.scoring import (
    EncodedBatch,
    Found,
    Meters,
    Reading,
    StepScores,
    compute_meters,
    draw_readings,
    encode_views,
    score_step,
    start_meters,
    step_scores,
    view_readings,
)
from mmaselect.terminal.progress import progress_bar

#: Positions of images, and what is read of them at each timestep.
Batch = tuple[list[int], dict[int, tuple[TapKey, ...]], list[str] | None]


class Stages:
    """Scores the timesteps of a grid, stage by stage.

    Args:
        dit: The frozen model.
        calibration: The images, with views where a criterion compares them.
        options: Criteria, batch size, seed and confidence.
        grid: The timesteps.
        round_ends: How many images a timestep has seen after each round of the race.
        partial: Where sums are kept for a sweep that is killed; None to keep none.
        cost: What a pass costs, by where it ends; None where all end at one place.

    Attributes:
        done (SweepProgress): How far this rank is.
    """

    def __init__(
        self,
        dit: FrozenDiT,
        calibration: CalibrationSet,
        options: SelectionOptions,
        grid: TimestepGrid,
        round_ends: Sequence[int],
        partial: PartialSums | None = None,
        cost: PassCost | None = None,
    ) -> None:
        self.dit = dit
        self.calibration = calibration
        self.options = options
        self.grid = grid
        self.round_ends = round_ends
        self.partial = partial
        self.cost = cost
        self.rank, self.world_size = rank_and_size()
        self.criteria = options.criteria
        self.draws = max(criterion.draws for criterion in self.criteria.values())
        self.num_tokens = dit.num_tokens(calibration.image_size)
        self.places = Places.of(dit)
        self.meters = {step: self._start_meters() for step in grid.coarse}
        # Images that a timestep had seen at a (block, feature), and what the criterion gave.
        self._found: dict[tuple[int, TapKey, str], tuple[int, Found]] = {}
        self.done = self._resume()
        self._start = time.perf_counter() - self.done.seconds

    @property
    def _lasting(self) -> list[str]:
        """Criteria that are scored beyond the first round of a race.

        That is the one that decides, with those that need no pass in addition to its own, and those
        that cannot say anything of a few images. Others are drawn from the first round: the same
        images at all timesteps.
        """
        first = self.criteria[self.deciding]
        return [
            name
            for name, criterion in self.criteria.items()
            if criterion.race_from is None
            or criterion.race_from > self.round_ends[0]
            or (criterion.draws <= first.draws and criterion.views <= first.views)
        ]

    @property
    def deciding(self) -> str:
        """Name of the criterion that decides."""
        return next(iter(self.criteria))

    @property
    def readings(self) -> int:
        """Passes that all criteria together take of an image at a timestep."""
        return self.draws + max(criterion.views for criterion in self.criteria.values())

    @property
    def seconds(self) -> float:
        """Seconds spent so far, including those before a break."""
        return time.perf_counter() - self._start

    def run(self, progress: bool) -> Counter[int]:
        """Score stage after stage until nothing is left to do. All ranks call it together.

        Args:
            progress: Draw a progress bar on rank 0.

        Returns:
            Counter: FLOPs of a transformer pass of one image (1 without ``cost``) to how many there
            were, of all ranks.
        """
        unit = 'images x timesteps'
        if self.options.method == 'race':
            unit += ', at most'
        with progress_bar(unit, disable=not progress or self.rank > 0) as bar:
            task = bar.add_task('selecting timestep', total=self._at_most())
            while True:
                shares = gather_answers(
                    lambda tell: self._score_share(tell, lambda count: bar.advance(task, count))
                )
                more = self._next_stage()
                total = bar.tasks[0].completed + (self._at_most() if more else 0)
                bar.update(task, total=total, description=self._stage_in_words(more))
                if not more:
                    return sum(map(Counter, shares), Counter())

    def scores(self) -> list[StepScores]:
        """Scores of all timesteps, sorted, at each place, on the images that they have seen."""
        return self._read(sorted(self.done.rounds))

    def _start_meters(self) -> Meters:
        return start_meters(self.criteria, self.places.taps, self.dit.device)

    def _resume(self) -> SweepProgress:
        """Where a killed sweep was, its sums in the meters; or the beginning."""
        arms = list(product(self.grid.coarse, range(len(self.places.groups))))
        first = SweepProgress(arms=arms, rounds=dict.fromkeys(arms, 0))

        def load(tell: Callable[[str], None]) -> SweepProgress:
            tell('looking for the sums of a sweep that was stopped')
            found = self.partial.load(self.meters, self._start_meters) if self.partial else None
            return found or first

        found = gather_answers(load)
        # Ranks are in one stage; but some may have been killed at the end of the one before.
        latest = max(found, key=lambda done: done.stage)
        for number, done in enumerate(found):
            if done.stage != latest.stage and (
                done.stage != latest.stage - 1
                or done.units < sum(len(steps) for _, steps, _ in self._work(done, number))
            ):
                warn('ranks were stopped too far apart: the selection starts from its beginning')
                reset(self.meters, self.grid.coarse)
                return first
        self._add_meters(latest.rounds)
        mine = found[self.rank]
        return mine if mine.stage == latest.stage else replace(mine, **latest.plan, units=0)

    def _add_meters(self, arms: Iterable[Arm]) -> None:
        for step in {step for step, _ in arms}.difference(self.meters):
            self.meters[step] = self._start_meters()

    def _work(self, done: SweepProgress, rank: int) -> Iterator[Batch]:
        """A rank's batches in a stage, and what is read of each at which timesteps."""
        order, size = self.calibration.order, self.options.batch_size
        lasting = self._lasting if self.options.method == 'race' else None
        start = 0
        for number, end in enumerate(self.round_ends[: done.goal]):
            arms = [arm for arm in done.arms if done.rounds[arm] <= number]
            steps = taps_by_timestep(arms, self.places)
            share = [order[place] for place in range(start, end) if place % self.world_size == rank]
            if steps:
                for first in range(0, len(share), size):
                    yield share[first : first + size], steps, None if number == 0 else lasting
            start = end

    def _stage_in_words(self, more: bool) -> str:
        """What the progress bar says of the stage that begins; of the race that ended without."""
        done = self.done
        name = 'selecting timestep'
        if not more:
            return name
        if done.refined:
            return f'{name}: {len(done.arms)} around the best'
        total = len(self.grid.coarse) * len(self.places.groups)
        images = self.round_ends[done.goal - 1]
        return f'{name}: {len(done.arms)} of {total} left, to {images:,} images'

    def _at_most(self) -> int:
        """Images x timesteps that this rank has before it from the beginning of a stage.

        As if nothing more were dropped, up to the images on which the selection may end.
        """
        done, options = self.done, self.options
        now = sum(len(p) * len(steps) for p, steps, _ in self._work(done, self.rank))
        seen, last = self.round_ends[done.goal - 1], self.round_ends[-1]
        if options.grows:
            enough = min(options.first_images, last)
            last = max(seen, next(end for end in self.round_ends if end >= enough))
        later = len(range(seen + (self.rank - seen) % self.world_size, last, self.world_size))
        return now + later * len(taps_by_timestep(done.arms, self.places))

    def _score_share(
        self, tell: Callable[[str], None], advance: Callable[[int], None]
    ) -> dict[int, int]:
        """Add this rank's images to the scores of a stage; returns its passes so far."""
        done = self.done
        before, unit = done.units, 0
        for positions, steps, names in self._work(done, self.rank):
            encoded = None
            for step, taps in steps.items():
                unit += 1
                if unit > before:
                    tell(f'scoring timestep {step}, images {positions}')
                    encoded = encoded or self.encode(self.calibration.batch(positions))
                    some = None if taps == self.dit.keys else taps
                    count = score_step(self.dit, encoded, step, self.meters[step], some, names)
                    each = 1 if self.cost is None else self.cost.to(taps)
                    done.passes[each] = done.passes.get(each, 0) + count
                    done.units = unit
                    done.seconds = self.seconds
                    if self.partial is not None:
                        self.partial.save_if_due(self.meters, done)
                advance(len(positions))
        if self.partial is not None and len(self.round_ends) > 1:
            # Nobody begins the next stage before all have this one on disk.
            self.partial.save(self.meters, done)
        return done.passes

    def _next_stage(self) -> bool:
        """Whether there is more to do once all ranks have ended a stage; ``done`` then says what.

        All ranks call it together.
        """
        done = self.done
        done.rounds.update(dict.fromkeys(done.arms, done.goal))
        scores = self._read(done.arms)
        last, goal = len(self.round_ends), done.goal
        settled = from_rank_zero(self._is_settled(scores)) if goal < last else True
        if goal < last:
            end = self.round_ends[goal - 1]
            ended = dict(done.at_ends.get(end, {}))
            for step, found in round_scores(scores).items():
                ended[step] = {**ended.get(step, {}), **found}
            done.at_ends[end] = ended
        finite = [arm for arm, one in zip(done.arms, scores, strict=True) if one.is_finite]
        races = goal < last and self.options.method == 'race'
        left = from_rank_zero(self._contenders(scores)) if races else finite
        if not left:
            # Everybody who led has features that overflow on an image: back to all the others.
            out = [arm for arm in sorted(done.rounds) if arm not in done.arms]
            left = [arm for arm, one in zip(out, self._read(out), strict=True) if one.is_finite]
            goal = last
            if not left:
                return False
        elif not settled and len(left) > 1:
            goal += 1
        else:
            leaders = from_rank_zero(self._leaders(scores))
            finer = from_rank_zero(self._finer(scores, leaders))
            if not finer:
                return False
            done.refined = True
            self._add_meters(finer)
            done.rounds.update(dict.fromkeys(finer, 0))
            left = sorted([*leaders, *finer])
        done.stage, done.arms, done.goal, done.units = done.stage + 1, left, goal, 0
        return True

    def _is_settled(self, scores: Sequence[StepScores]) -> bool:
        """Whether a sweep that takes as many images as it needs has enough of them."""
        images, options = self.round_ends[self.done.goal - 1], self.options
        if not options.grows or images < options.first_images:
            return False
        if not any(one.is_finite for one in scores):
            return True
        deciding = self.criteria[self.deciding]
        return settles(
            scores, self.deciding, self.places, self.grid.coarse, deciding.race_from or 0
        )

    def _taps_of(self, step: StepScores) -> tuple[TapKey, ...]:
        return self.places.read(step, self.deciding)

    def _contenders(self, scores: Sequence[StepScores]) -> list[Arm]:
        """Arms of the stage that may be the best."""
        left = contending(scores, self.deciding, self._taps_of, self.options.confidence)
        return [self.done.arms[place] for place in left]

    def _finer(self, scores: Sequence[StepScores], leaders: Sequence[Arm]) -> list[Arm]:
        """Arms next to the best one that were not scored yet, at each place that may be the best.

        A climb: d' and its like are smooth over timesteps, so it ends where both sides are lower.
        """
        if self.grid.spacing is None or not leaders:
            return []
        best, _ = choose_winner(scores, self.deciding, self.places)
        places = sorted({place for _, place in leaders})
        near = product(self.grid.next_to(best.timestep), places)
        return [arm for arm in near if arm not in self.done.rounds]

    def _leaders(self, scores: Sequence[StepScores]) -> list[Arm]:
        """Who may be the best; one alone by a criterion that does not say what images add."""
        if all((tap, self.deciding) in one.per_image for one in scores for tap in one.taps):
            return self._contenders(scores)
        winner, _ = choose_winner(scores, self.deciding, self.places)
        return [arm for arm, one in zip(self.done.arms, scores, strict=True) if one is winner]

    def _read(self, arms: Sequence[Arm]) -> list[StepScores]:
        """Scores of timesteps at places on the images that they have seen, over all ranks.

        All ranks call it together. What was computed on as many images before is kept.
        """
        first = self.round_ends[0]
        lasting = self._lasting if self.options.method == 'race' else list(self.criteria)
        keys, stale = [], {}
        for step, place in arms:
            images = self.round_ends[self.done.rounds[step, place] - 1]
            taps = self.places.groups[place]
            keys.append([key for key in self.meters[step] if key[0] in taps])
            for tap, name in keys[-1]:
                seen = images if name in lasting else min(images, first)
                if self._found.get((step, tap, name), (None, None))[0] != seen:
                    stale[step, tap, name] = seen
        meters = [self.meters[step][tap, name] for step, tap, name in stale]
        for cell, found in zip(stale, compute_meters(meters), strict=True):
            self._found[cell] = stale[cell], found
        return [
            step_scores(
                {key: self._found[step, *key][1] for key in mine},
                self.dit,
                step,
                self.num_tokens,
                self.round_ends[self.done.rounds[step, place] - 1],
            )
            for (step, place), mine in zip(arms, keys, strict=True)
        ]

    def encode(self, batch: CalibrationBatch) -> EncodedBatch:
        """Latents and noise of a batch: of the images if a criterion reads them, of their views."""
        draws: tuple[Reading, ...] = ()
        views: tuple[Reading, ...] = ()
        seed = self.options.seed
        if self.draws:
            latent = self.dit.encode(batch.images.to(self.dit.device))
            draws = draw_readings(latent, batch.indices, self.draws, seed)
        if batch.views is not None:
            latents = encode_views(self.dit, batch.views)
            views = view_readings(latents, batch.indices, seed, self.options.views.noise)
        return EncodedBatch(
            draws,
            batch.indices,
            batch.labels,
            views,
            None if batch.views is None else batch.views.where,
        )
