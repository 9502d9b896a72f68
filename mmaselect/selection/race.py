# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Racing: timesteps that cannot be the best any more get no further images. Pure functions.

All timesteps are scored on a few images. Those that are worse than the leader beyond doubt are
dropped, the others get twice as many images, and so on, until one is left or there are no more
images (Maron and Moore, "Hoeffding races", 1994; paired differences as in the races of Birattari
et al., 2002). All timesteps see the same images with the same noise, and what is tested is the
difference image by image: what makes an image score high at all timesteps cancels.

A criterion that compares images with one another, as all that look at pairs of views do, is raced
by what each image adds, too, with the images seen so far as its gallery. Its score depends on how
many these are, so scores of different rounds are not on one scale: :func:`on_one_scale` puts
them on one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import t as student

from mmaselect.diffusion import TapKey
from mmaselect.selection.criteria.base import Criterion
from mmaselect.selection.scoring import StepScores

#: Timestep to its score by (block, feature) and criterion, at the end of one round.
RoundScores = Mapping[int, Mapping[tuple[TapKey, str], float]]


def round_ends(
    criterion: Criterion, num_images: int, race: bool, settles_from: int | None = None
) -> list[int]:
    """How many images a timestep has seen after each round.

    Args:
        criterion: The one that decides.
        num_images: All there are.
        race: Whether to race at all.
        settles_from: Images on which a sweep ends if its pick is decided; None if it takes all.

    Returns:
        ``[num_images]`` where there is no race: nothing is dropped before all images were seen.

    Example:
        >>> from mmaselect.selection import FisherScore, HighFrequencyRatio
        >>> round_ends(HighFrequencyRatio(), 100, race=True)
        [16, 32, 64, 100]
        >>> round_ends(FisherScore(10), 100, race=True)
        [100]
        >>> round_ends(HighFrequencyRatio(), 500, race=False, settles_from=128)
        [128, 256, 500]
    """
    ends, end = [], criterion.race_from
    while race and end is not None and end < min(num_images, settles_from or num_images):
        ends.append(end)
        end *= 2
    while settles_from is not None and settles_from < num_images:
        ends.append(settles_from)
        settles_from *= 2
    return [*ends, num_images]


def contenders(
    steps: Sequence[StepScores], criterion: str, taps: Sequence[TapKey], confidence: float
) -> list[int]:
    """Timesteps that may still be the best of some, all scored on the same images.

    A timestep is dropped if the leader's score is higher by more than a one-sided confidence bound
    of Student's t for the mean of paired differences; what an image adds to a ratio of sums is
    linearized (delta method, see :class:`~mmaselect.selection.criteria.base.PerImageCriterion`).
    One whose features were not finite is dropped, too.

    Args:
        steps: Scores of each timestep.
        criterion: The one that decides.
        taps: The (block, feature) whose scores are averaged.
        confidence: Confidence of each comparison with the leader.
    """
    left = contending(steps, criterion, lambda step: taps, confidence)
    return [steps[place].timestep for place in left]


def contending(
    steps: Sequence[StepScores],
    criterion: str,
    taps_of: Callable[[StepScores], Sequence[TapKey]],
    confidence: float,
) -> list[int]:
    """Positions of those that may still be the best: see :func:`contenders`.

    Args:
        steps: Scores of each timestep, or of each timestep at each place.
        criterion: The one that decides.
        taps_of: The (block, feature) of each whose scores are averaged.
        confidence: Confidence of each comparison with the leader.
    """
    usable = [
        place
        for place, step in enumerate(steps)
        if step.mean(taps_of(step), criterion, 'score') is not None
    ]
    if len(usable) < 2:
        return usable
    found = compare([steps[place] for place in usable], criterion, taps_of)
    behind = found.lag > student.ppf(confidence, found.count - 1) * found.error
    return [place for place, out in zip(usable, behind, strict=True) if not out]


@dataclass(frozen=True)
class Comparison:
    """Timesteps next to the one of them that scores best, all scored on the same images.

    Attributes:
        timesteps: In the order in which they came.
        leader: Position of the best; the first of equals.
        lag: (steps,), how far each lies behind it; 0 where that is not more than rounding.
        error: (steps,), standard error of the lag, from paired differences.
        count: Number of images.
    """

    timesteps: list[int]
    leader: int
    lag: np.ndarray
    error: np.ndarray
    count: int


def compare(
    steps: Sequence[StepScores],
    criterion: str,
    taps_of: Callable[[StepScores], Sequence[TapKey]],
) -> Comparison:
    """Compare timesteps with the one of them that scores best.

    Args:
        steps: Scores of each timestep, all finite.
        criterion: The one that decides.
        taps_of: The (block, feature) of each whose scores are averaged.
    """
    means = [linearized_mean(step, criterion, taps_of(step)) for step in steps]
    scores = np.array([score for score, _ in means])
    parts = np.stack([part for _, part in means])
    leader = int(scores.argmax())
    lag = scores[leader] - scores
    lag[lag <= rounding(scores)] = 0.0
    count = parts.shape[1]
    error = np.full(len(steps), np.inf)
    if count > 1:
        error = (parts[leader] - parts).std(1, ddof=1) / np.sqrt(count)
    return Comparison([step.timestep for step in steps], leader, lag, error, count)


def linearized_mean(
    step: StepScores, criterion: str, taps: Sequence[TapKey]
) -> tuple[float, np.ndarray]:
    """The mean score over some (block, feature), and what each image adds to it, (N,)."""
    terms = np.stack([step.per_image[tap, criterion] for tap in taps]).astype(float)
    ratio, parts = linearize(terms)
    return float(ratio.mean()), parts.mean(0)


def rounding(scores: np.ndarray) -> float:
    """Difference of scores that rounding alone may make."""
    return float(1e-9 * np.abs(scores).max(initial=0.0))


def linearize(terms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ratios of sums over images, and what each image adds to them.

    Args:
        terms: (..., N, 2), numerators and denominators of N images.

    Returns:
        tuple[np.ndarray, np.ndarray]: The ratios (...,), and (..., N), whose means have the
        ratios' standard errors to first order (delta method).
    """
    totals = terms.sum(-2)
    with np.errstate(divide='ignore', invalid='ignore'):
        ratio = np.where(totals[..., 1] > 0, totals[..., 0] / totals[..., 1], 0.0)
        parts = (terms[..., 0] - ratio[..., None] * terms[..., 1]) / (
            totals[..., 1:] / terms.shape[-2]
        )
    return ratio, np.nan_to_num(parts)


def round_scores(steps: Sequence[StepScores]) -> dict[int, dict[tuple[TapKey, str], float]]:
    """What :func:`on_one_scale` needs to know of a round."""
    found: dict[int, dict[tuple[TapKey, str], float]] = {}
    for step in steps:
        scores = {key: value['score'] for key, value in step.values.items()}
        found.setdefault(step.timestep, {}).update(scores)
    return found


def on_one_scale(
    steps: Sequence[StepScores], rounds: Mapping[int, RoundScores], winner: StepScores
) -> list[StepScores]:
    """Scores of timesteps that saw fewer images, on the scale of the one that won.

    None is higher than what was scored. Otherwise each keeps its distance to the winner on the
    images that both saw. For a mean over images that is the difference estimator of two-phase
    sampling (Cochran, "Sampling Techniques", 1977, chapter 12), closer to the mean over all images
    than the mean over a few of them; for a criterion that compares images with one another it takes
    out what depends on their number. A winner of the finer grid was not in all rounds: there its
    nearest neighbor among the finalists stands for it, one that is read at the same place if there
    is one.

    Args:
        steps: Scores of each timestep, or of each timestep at each place, with its number of
            images.
        rounds: Number of images to the scores of those who raced then.
        winner: The one with the most images that won.
    """
    placed = []
    for step in steps:
        before = rounds.get(step.images or 0, {})
        anchors = [
            one
            for one in steps
            if one.images == winner.images
            and one.values.keys() <= before.get(one.timestep, {}).keys()
        ]
        if step.images == winner.images or not anchors:
            placed.append(step)
            continue
        near = min(
            anchors,
            key=lambda one: (
                one.taps != step.taps,
                abs(one.timestep - winner.timestep),
                one.taps != winner.taps,
            ),
        )
        values = {}
        for (tap, name), value in step.values.items():
            key = (tap if tap in near.taps else near.taps[0], name)
            shift = min(0.0, near.values[key]['score'] - before[near.timestep][key])
            values[tap, name] = {**value, 'score': value['score'] + shift}
        placed.append(replace(step, values=values))
    return placed
