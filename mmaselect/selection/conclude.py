# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""From scores to a pick: curves, their maxima, and what makes a pick suspect. Pure functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mmaselect.diffusion import TapKey
from mmaselect.model_zoo import list_models, model_info
from mmaselect.selection.arms import Places
from mmaselect.selection.caveats import Caveat
from mmaselect.selection.criteria.base import Criterion
from mmaselect.selection.decision import MOST_IMAGES, Decision, decide, neighborhood
from mmaselect.selection.place import Place, choose_place
from mmaselect.selection.race import RoundScores, linearized_mean, on_one_scale, rounding
from mmaselect.selection.result import Curve, CurvePoint, best_point, finalists
from mmaselect.selection.scoring import StepScores


@dataclass(frozen=True)
class Conclusion:
    """What a sweep's scores say.

    Attributes:
        curve: The deciding criterion's curve, the mean over (block, feature); it holds the pick.
        others: The same of each further criterion.
        per_tap: The deciding criterion's curve of each (block, feature).
        warnings: What a careful reader should know.
        interval: Lowest and highest timestep of :func:`pick_interval`, for the deciding curve.
        decision: Whether the images decide the pick; None where that cannot be said.
        read: The (block, feature) that are to be read: all, or the place that was picked.
        contenders: (block, feature, timestep) that the images cannot tell from the best one, where
            single places were compared.
    """

    curve: Curve
    others: dict[str, Curve]
    per_tap: list[Curve]
    warnings: list[Caveat]
    interval: tuple[int, int] | None = None
    decision: Decision | None = None
    read: tuple[TapKey, ...] = ()
    contenders: tuple[tuple[int, str, int], ...] = ()


def conclude(
    steps: Sequence[StepScores],
    criteria: Sequence[str],
    taps: Sequence[TapKey] | Places,
    dtype: str,
    num_images: int | None = None,
    at_ends: Mapping[int, RoundScores] | None = None,
    grid: Sequence[int] | None = None,
    model: str | None = None,
    enough: int = 0,
) -> Conclusion:
    """Pick the timestep that scores best, and say what is suspect about it.

    Args:
        steps: Scores of each timestep, sorted by it.
        criteria: Names; the first one decides.
        taps: The (block, feature) that were scored, or the places of which one is picked.
        dtype: Precision of the model, for messages.
        num_images: All that a timestep could have been scored on.
        at_ends: At ends of a race: see :func:`~mmaselect.selection.race.on_one_scale`.
        grid: The timesteps without those of a finer grid; all if None.
        model: What the model was loaded from, which may be in the list of published models.
        enough: Images below which differences say nothing.

    Raises:
        RuntimeError: If no timestep has finite features, or a criterion no finite score.
    """
    places = taps if isinstance(taps, Places) else Places((tuple(taps),))
    warnings = warn_of_nonfinite_features(steps, dtype)
    deciding, *rest = criteria
    # Only who saw the most images can win; what others are drawn as depends on who does.
    winner, place = choose_winner(steps, deciding, places)
    scaled = on_one_scale(steps, at_ends or {}, winner)
    taps_of = _reader(winner, deciding, places)
    read = taps_of(winner)
    mine = _of_place(scaled, winner, deciding, places)
    curve = build_curve(mine, deciding, taps_of, finalists)
    others = {name: build_curve(mine, name, taps_of) for name in rest}
    warnings += warn_of_grid_end(curve, model)
    # Where somebody was dropped, or the race ended early, it has been seen that they differ.
    seen = {point.images for point in curve.points if point.score is not None}
    if len(seen) == 1 and seen <= {None, num_images}:
        warnings += warn_of_flat_curve(curve)
    warnings += warn_of_disagreement(curve, others, grid or curve.timesteps)
    if place is not None and not place.decided:
        warnings += warn_of_place(place, all(len(group) == 1 for group in places.groups))
    per_tap = curves_of_taps(scaled, deciding, places)
    last = [step for step in mine if step.images == curve.best.images]
    decision = decide(last, deciding, taps_of, grid or curve.timesteps, enough)
    warnings += warn_of_indecision(decision, curve)
    if place is not None and not place.decided and decision is not None:
        decision = replace(decision, decided=False)
    # At one timestep, the place alone is picked.
    interval = pick_interval(last, deciding, read) if len(curve.points) > 1 else None
    contenders: tuple[tuple[int, str, int], ...] = ()
    if place is not None and all(len(group) == 1 for group in places.groups):
        contenders = tuple((*key, step) for key, step in place.contenders)
    return Conclusion(curve, others, per_tap, warnings, interval, decision, tuple(read), contenders)


def settles(
    steps: Sequence[StepScores],
    criterion: str,
    places: Places,
    grid: Sequence[int],
    enough: int = 0,
) -> bool:
    """Whether more images would not help: the pick is decided, or one of equals.

    Args:
        steps: Scores of each timestep at each place, all on the same images.
        criterion: The one that decides.
        places: Where a timestep may be read.
        grid: The coarse grid, sorted.
        enough: Images below which differences say nothing.
    """
    winner, place = choose_winner(steps, criterion, places)
    if place is not None and not place.decided:
        return False
    mine = _of_place(steps, winner, criterion, places)
    decision = decide(mine, criterion, _reader(winner, criterion, places), grid, enough)
    return decision is None or decision.decided or decision.images_needed is None


def _reader(
    winner: StepScores, criterion: str, places: Places
) -> Callable[[StepScores], Sequence[TapKey]]:
    """What gives the (block, feature) of a timestep that are compared with the winner's."""
    read = places.read(winner, criterion) if places.are_searched else places.groups[0]
    return lambda step: read if places.count is None else places.read(step, criterion)


def _of_place(
    steps: Sequence[StepScores], winner: StepScores, criterion: str, places: Places
) -> list[StepScores]:
    """Those that were scored where the winner is read."""
    read = _reader(winner, criterion, places)(winner)
    group = set(read) if places.count is None else set(winner.taps)
    return [step for step in steps if group <= set(step.taps)]


def choose_winner(
    steps: Sequence[StepScores], criterion: str, places: Places
) -> tuple[StepScores, Place | None]:
    """The timestep, and the place, that is picked from those that were scored on the most images.

    Args:
        steps: Scores of each timestep at each place.
        criterion: The one that decides.
        places: Where a timestep may be read.

    Returns:
        Its scores, and what was found of the place; None where no place is compared with others.

    Raises:
        RuntimeError: If there is no finite score.
    """

    def score(step: StepScores) -> float | None:
        one = len(places.groups) == 1 and places.count is None
        taps = places.groups[0] if one else places.read(step, criterion)
        return step.mean(taps, criterion, 'score')

    usable = [step for step in steps if score(step) is not None]
    most = max((step.images or 0 for step in usable), default=0)
    usable = [step for step in usable if (step.images or 0) == most]
    if not usable:
        raise RuntimeError(
            f'{criterion} gave no finite score at any of {sorted({s.timestep for s in steps})}'
        )
    has_terms = all((tap, criterion) in step.per_image for step in usable for tap in step.taps)
    if len(places.groups) == 1 or not has_terms:
        best = max(usable, key=lambda step: (score(step), -step.timestep))
        return best, None
    # A group stands under its first (block, feature), with the mean of what images add to it.
    named = {(step.taps[0], step.timestep): step for step in usable}
    terms = {}
    for cell, step in named.items():
        mean, parts = linearized_mean(step, criterion, places.read(step, criterion))
        terms[cell] = np.stack([mean + parts, np.ones_like(parts)], 1)
    place = choose_place(terms, places.published)
    return named[(place.block, place.feature), place.timestep], place


def curves_of_taps(steps: Sequence[StepScores], criterion: str, places: Places) -> list[Curve]:
    """The curve of each (block, feature) by itself; of a search, of those with a finite score."""
    if not places.are_searched:
        return [build_curve(steps, criterion, [tap]) for tap in places.taps]
    curves = []
    for tap in places.taps:
        own = [step for step in steps if tap in step.taps]
        if any(step.is_finite for step in own):
            curves.append(build_curve(own, criterion, [tap]))
    return curves


def pick_interval(
    steps: Sequence[StepScores],
    criterion: str,
    taps: Sequence[TapKey],
    confidence: float = 0.95,
    resamples: int = 1000,
) -> tuple[int, int] | None:
    """Between which timesteps the pick lies when the calibration images are drawn again.

    A bootstrap over images (Efron, 1979): the images are drawn with replacement, the same at all
    timesteps, and the argmax is taken each time. A criterion that compares images with one another
    keeps its gallery: only whose matches are averaged changes.

    Args:
        steps: Scores of each timestep.
        criterion: Name.
        taps: The (block, feature) whose scores are averaged.
        confidence: Share of the resamples that lies within.
        resamples: How often.

    Returns:
        The lowest and the highest timestep; None for a criterion that is not a ratio of sums over
        images, with fewer than two images, and where all scores are equal.
    """
    usable = [step for step in steps if step.is_finite]
    if not usable or any((tap, criterion) not in step.per_image for step in usable for tap in taps):
        return None
    # (taps, steps, images, 2)
    terms = np.stack(
        [np.stack([step.per_image[tap, criterion] for step in usable]) for tap in taps]
    )
    count = terms.shape[2]
    if count < 2:
        return None
    rng = np.random.default_rng(0)
    weights = rng.multinomial(count, np.full(count, 1 / count), size=resamples).astype(float)
    sums = np.einsum('rn,ksnd->rksd', weights, np.nan_to_num(terms), optimize=True)
    with np.errstate(divide='ignore', invalid='ignore'):
        scores = np.where(sums[..., 1] > 0, sums[..., 0] / sums[..., 1], 0.0).mean(1)
    if np.ptp(scores) <= rounding(scores):
        return None
    picks = np.array([step.timestep for step in usable])[scores.argmax(1)]
    outside = (1 - confidence) / 2
    low, high = np.quantile(picks, [outside, 1 - outside], method='inverted_cdf')
    return int(low), int(high)


def _images_seen(step: StepScores, tap: TapKey, criterion: str) -> int | None:
    """Images that a criterion saw; in a race, the others see those of the first round only."""
    counted = step.values[tap, criterion].get('count')
    if step.images is None or counted is None or not step.is_finite:
        return step.images
    return min(step.images, int(counted))


def build_curve(
    steps: Sequence[StepScores],
    criterion: str,
    taps: Sequence[TapKey] | Callable[[StepScores], Sequence[TapKey]],
    among: Callable[[Sequence[CurvePoint]], Sequence[CurvePoint]] = list,
) -> Curve:
    """A criterion's curve, the mean over some (block, feature), with its best timestep.

    The score must be finite to be the best; of equal scores the smallest timestep wins.

    Args:
        steps: Scores of each timestep, on one scale.
        criterion: Name.
        taps: The (block, feature) whose scores are averaged, or what gives them for a timestep.
        among: The points that can be the best.

    Raises:
        RuntimeError: If there is no finite score.
    """

    def point(step: StepScores) -> CurvePoint:
        read = taps(step) if callable(taps) else taps
        return CurvePoint(
            timestep=step.timestep,
            noise_level=step.noise_level,
            log_snr=step.log_snr,
            score=step.mean(read, criterion, 'score'),
            std=step.mean(read, criterion, 'std'),
            # Blocks of one image are not independent: their mean is the careful bound.
            sem=step.mean(read, criterion, 'sem'),
            images=_images_seen(step, read[0], criterion),
        )

    points = tuple(point(step) for step in steps)
    best = best_point(among(points))
    if best is None:
        raise RuntimeError(
            f'{criterion} gave no finite score at any of {[step.timestep for step in steps]}'
        )
    block, feature = None, None
    if not callable(taps) and len(taps) == 1:
        block, feature = taps[0]
    return Curve(criterion, best.timestep, points, block, feature)


def warn_of_nonfinite_features(steps: Sequence[StepScores], dtype: str) -> list[Caveat]:
    """A warning that names the timesteps which cannot be picked.

    Raises:
        RuntimeError: If these are all.
    """
    finite = {step.timestep for step in steps if step.is_finite}
    broken = sorted({step.timestep for step in steps} - finite)
    if not broken:
        return []
    if not finite:
        raise RuntimeError(
            f'no timestep gave finite features in {dtype}: use dtype="bf16" or "fp32"'
        )
    text = (
        f'features were not finite (NaN or infinity) in {dtype} at timesteps {broken}: those '
        f'timesteps cannot be picked. Use dtype="bf16" or "fp32" if this is an overflow'
    )
    return [Caveat.of('nonfinite', text)]


def warn_of_grid_end(curve: Curve, model: str | None = None) -> list[Caveat]:
    """A warning if the pick is the first or the last scored point of the grid.

    Args:
        curve: That of the deciding criterion.
        model: Its name. One whose card says that it was trained briefly may well be best at t = 0.
    """
    scored = [point.timestep for point in curve.points if point.score is not None]
    if len(scored) <= 2 or curve.timestep not in (scored[0], scored[-1]):
        return []
    end = 'first' if curve.timestep == scored[0] else 'last'
    reason = 'the maximum may lie outside of it, or the criterion may be measuring the noise itself'
    if curve.timestep == 0:
        # Nothing lies below 0: to advise a wider grid would be no help.
        published = model_info(model) if model in list_models() else None
        if published is not None and published.brief:
            return []
        reason = 'the image with the least noise. ' + (
            'A model that was trained briefly can be best there; a well-trained one seldom is'
            if published is None
            else f'{model} was trained at length, and such a model seldom is best there: look at '
            f'the curve, and check the pick with labels if you have some (`mmaselect probe`)'
        )
    text = f'the pick, timestep {curve.timestep}, is the {end} point of the grid: {reason}'
    return [Caveat.of(end, text)]


def warn_of_indecision(decision: Decision | None, curve: Curve) -> list[Caveat]:
    """A warning if the images cannot tell the pick from timesteps far away."""
    if decision is None or decision.decided:
        return []
    rivals, images = decision.rivals, curve.best.images
    settled = (
        f'more than {MOST_IMAGES:,} images would be needed'
        if decision.images_needed is None
        else f'about {decision.images_needed:,} images would settle it'
    )
    text = (
        f'the pick is undecided: {len(rivals)} of {len(curve.points)} timesteps '
        f'({rivals[0]} to {rivals[-1]}) cannot be told from it on {images} images; {settled}'
    )
    return [Caveat.of('undecided', text)]


def warn_of_place(place: Place, of_blocks: bool = True) -> list[Caveat]:
    """A warning that the published place was kept because the images cannot tell a better one.

    Args:
        place: What was found.
        of_blocks: Whether blocks were compared, and not features alone.
    """
    (block, feature), _ = place.contenders[0]
    rivals = len({tap for tap, _ in place.contenders})
    text = (
        f'the place is undecided: {rivals} places cannot be told from {feature}'
        f'{f" of block {block}" if of_blocks else ""}, which scores best; the published place, '
        f'{place.feature}{f" of block {place.block}" if of_blocks else ""}, is kept'
    )
    return [Caveat.of('place', text)]


def warn_of_images(num_images: int, distinct: int, criterion: Criterion) -> list[Caveat]:
    """Warnings of copies among the images, and of few images.

    Args:
        num_images: Calibration images.
        distinct: How many of them differ.
        criterion: The one that decides; it says how many images it needs.

    Raises:
        ValueError: If there are fewer distinct images than the criterion needs.
    """
    fewest, enough = criterion.fewest_images, criterion.race_from
    if distinct < fewest:
        copies = '' if distinct == num_images else f', as {num_images - distinct} are copies'
        raise ValueError(
            f'timestep selection by {type(criterion).__name__} needs {fewest} images or more that '
            f'differ, got {distinct}{copies}: add images (they need no labels), or set timestep to '
            f'a number'
        )
    found = []
    if distinct < num_images:
        text = f'{num_images - distinct} of {num_images} images are copies of others'
        found.append(Caveat.of('copies', text))
    if enough is not None and distinct < enough:
        text = (
            f'there are {distinct} different images, and this criterion asks for {enough} or more'
        )
        found.append(Caveat.of('few', text))
    return found


def warn_of_flat_curve(curve: Curve) -> list[Caveat]:
    """A warning if the scores differ by no more than their standard error."""
    scores = [point.score for point in curve.points if point.score is not None]
    spread = max(scores) - min(scores)
    error = max(point.sem or 0.0 for point in curve.points if point.score is not None)
    if len(scores) < 2 or spread > error:
        return []
    text = f'the curve is flat: scores differ by {spread:.3g}, their standard error is {error:.3g}'
    return [Caveat.of('flat', text)]


def warn_of_disagreement(
    curve: Curve, others: Mapping[str, Curve], grid: Sequence[int]
) -> list[Caveat]:
    """A warning for each criterion whose pick is far away: by more than a tenth of the grid.

    A pick that was scored on fewer images must be better by more than two standard errors.
    """
    near = neighborhood(curve.timestep, curve.timesteps, grid)
    return [
        Caveat.of(
            'disagreement',
            f'{name} disagrees: it would pick timestep {other.timestep} instead of '
            f'{curve.timestep}',
        )
        for name, other in others.items()
        if other.timestep not in near and _is_clear(other, curve)
    ]


def _is_clear(curve: Curve, deciding: Curve) -> bool:
    """Whether a curve's pick is better than the deciding one's, as far as its images tell."""
    best = curve.best
    point = next(point for point in curve.points if point.timestep == deciding.timestep)
    if best.images == point.images == deciding.best.images or best.sem is None:
        return True
    if best.score is None or point.score is None:
        return True
    return best.score - point.score > 2 * best.sem
