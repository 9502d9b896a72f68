# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
r"""What a selection costs, by replay: schedules of images and timesteps on what place.py stored.

The scores of all cells (block, feature, timestep) are computed for nested sets of 16 to 128 images,
and each schedule is played on them. A pass is one image through the model at one timestep: two for
the views of an image, and one for the paper's curve on the images of the first round. It ends at
the deepest cell that may still be the best: its FLOPs are counted as well. The added
regret is that of the cell that a schedule picks against the cell that the full sweep picks. Probes
are at a few timesteps; accuracy between two of them is interpolated.

Example:
  python benchmarks/bill.py digits_clean digits_noise flow_noise --out work_dirs/place
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from race import sensitivities
from scipy.stats import norm
from scipy.stats import t as student

from mmaselect.selection.criteria.view_pairs import SENSITIVITY_RIDGE
from mmaselect.selection.defaults import PRESETS
from mmaselect.selection.grid import TimestepGrid
from mmaselect.terminal.tables import markdown_table

SIZES = (16, 32, 64, 128)
#: Selections of each case, of images that are drawn at random from all.
SETS = 6
FULL = tuple(range(0, 1000, 25))
#: A full sweep: two views, and the paper's curve.
FULL_PASSES = 3 * SIZES[-1] * len(FULL)
COARSE = (0, 50, 100, 200, 300, 400, 600, 800)


@dataclass(frozen=True)
class Replay:
    """One set of calibration images of a case.

    Attributes:
        terms: Number of images to what each adds to the score, (cells, timesteps, images).
        accuracy: (cells, timesteps), of the probes, in percent.
        cells: Those that may be picked.
        flops: (cells,), of a pass that ends there.
    """

    terms: Mapping[int, np.ndarray]
    accuracy: np.ndarray
    cells: Sequence[int]
    flops: np.ndarray

    def score(self, images: int, steps: Sequence[int]) -> np.ndarray:
        """(cells, steps)."""
        return self.terms[images][self.cells][:, steps].mean(2)

    @property
    def full_flops(self) -> float:
        """FLOPs of a full sweep."""
        return FULL_PASSES * float(self.flops[self.cells].max())

    def best(self, images: int, steps: Sequence[int]) -> float:
        """Accuracy of the cell with the highest score at some timesteps."""
        found = self.score(images, steps)
        cell, step = np.unravel_index(found.argmax(), found.shape)
        return float(self.accuracy[self.cells[cell], steps[step]])


@dataclass(frozen=True)
class Schedule:
    """How images are shared among timesteps.

    Attributes:
        name: For the table.
        grid: Timesteps of the first round.
        first: Images of the first round.
        confidence: A timestep is dropped if all of its cells are behind the leader with this
            confidence; None: never for that.
        indifference: A timestep is dropped if going on with it is expected to gain less than this
            share of the leader's score.
        keep: The most timesteps that each round after the first keeps; the last entry holds on.
        refine: Spacing of the finer steps at the end, as the option of that name has it.
        paper: Images of the paper's curve; None for those of the first round.
    """

    name: str
    grid: tuple[int, ...] = FULL
    first: int = 32
    confidence: float | None = 0.999
    indifference: float = 0.0
    keep: tuple[int, ...] = ()
    refine: int | None = None
    paper: int | None = None

    def play(self, replay: Replay) -> tuple[int, float, float]:
        """Passes, their FLOPs, and the accuracy of what is picked."""
        left = [FULL.index(step) for step in self.grid]
        depths = np.full(len(left), replay.flops[replay.cells].max())
        paper = self.first if self.paper is None else self.paper
        passes = len(left) * (2 * self.first + paper)
        flops = passes * depths[0]
        rounds = [size for size in SIZES if size >= self.first]
        seen = rounds[0]
        for number, size in enumerate(rounds[1:], 1):
            left, depths = self._left(replay, seen, left, number)
            if len(left) == 1:
                break
            passes += 2 * (size - seen) * len(left)
            flops += 2 * (size - seen) * depths.sum()
            seen = size
        if self.refine:
            left, depths = self._left(replay, seen, left, len(rounds))
            while new := self._finer(replay, seen, left):
                passes += (2 * seen + paper) * len(new)
                flops += (2 * seen + paper) * len(new) * depths.max()
                left = sorted([*left, *new])
        return passes, float(flops), replay.best(seen, left)

    def _finer(self, replay: Replay, size: int, left: Sequence[int]) -> list[int]:
        """Positions of timesteps that join; none at the end."""
        best = FULL[left[replay.score(size, left).max(0).argmax()]]
        near = TimestepGrid(self.grid, self.refine).next_to(best)
        return sorted({FULL.index(step) for step in near}.difference(left))

    def _left(
        self, replay: Replay, size: int, left: Sequence[int], number: int
    ) -> tuple[list[int], np.ndarray]:
        """Timesteps that go on after a round, and the FLOPs of a pass at each."""
        terms = replay.terms[size][replay.cells][:, left]
        score = terms.mean(2)
        best = np.unravel_index(score.argmax(), score.shape)
        lag = score[best] - score
        error = (terms[best] - terms).std(2, ddof=1) / np.sqrt(size)
        stays = np.ones(score.shape, bool)
        if self.confidence is not None:
            stays &= lag <= student.ppf(self.confidence, size - 1) * error
        if self.indifference:
            with np.errstate(divide='ignore', invalid='ignore'):
                z = np.where(error > 0, lag / error, np.inf)
            gain = error * norm.pdf(z) - lag * norm.sf(z)
            stays &= gain > self.indifference * score[best]
            stays[best] = True
        kept = np.flatnonzero(stays.any(0))
        if self.keep:
            most = self.keep[min(number, len(self.keep)) - 1]
            order = np.where(stays, score, -np.inf).max(0)[kept].argsort()[::-1][:most]
            kept = np.sort(kept[order])
        depths = np.where(stays, replay.flops[replay.cells][:, None], 0).max(0)
        return [left[i] for i in kept], depths[kept]


def accuracies(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """Accuracy of the probes, interpolated on the full grid: (cells, timesteps)."""
    curves = 100 * arrays['hits'].mean(2)
    return np.stack([np.interp(FULL, arrays['grid'], curve) for curve in curves])


def replays(path: Path, ridge: float = SENSITIVITY_RIDGE) -> list[tuple[Replay, Replay]]:
    """All cells, and the middle query alone, for each set of images; scores are kept in a file."""
    arrays = dict(np.load(path))
    if 'flops' not in arrays:
        raise ValueError(f'{path} lacks FLOPs, as earlier versions stored it: collect it anew')
    taps = [(int(tap.split(',')[0]), tap.split(',')[1]) for tap in arrays['taps']]
    middle = taps.index(((max(block for block, _ in taps) + 1) // 2, 'query'))
    rng = np.random.default_rng(0)
    kept = path.with_suffix('.terms.npz')
    if not kept.exists():
        terms = {}
        for number in range(SETS):
            images = rng.permutation(arrays['views_0'].shape[1])
            for size in SIZES:
                values = [
                    sensitivities(
                        torch.from_numpy(arrays[f'views_{step}'][:, images[:size]]).float(), ridge
                    )
                    for step in FULL
                ]
                terms[f'{number}/{size}'] = torch.stack(values, 1).float().numpy()
        np.savez(kept, **terms)
    stored, accuracy = dict(np.load(kept)), accuracies(arrays)
    found = []
    for number in range(SETS):
        terms = {size: stored[f'{number}/{size}'] for size in SIZES}
        cells = range(len(taps))
        joint = Replay(terms, accuracy, list(cells), arrays['flops'])
        found.append((joint, replace(joint, cells=[middle])))
    return found


FAST = PRESETS['fast']
SCHEDULES = (
    Schedule('40 timesteps, all on 128 images', first=128, confidence=None),
    Schedule('40, 0.999 (the default)'),
    Schedule('40, 0.95', confidence=0.95),
    Schedule("10, 0.95; 25 (`'fast'`)", FAST['timesteps'], 32, FAST['confidence'], refine=25),
    Schedule('10, 0.99; 25', FAST['timesteps'], confidence=0.99, refine=25),
    Schedule('10, 0.95', FAST['timesteps'], confidence=0.95),
    Schedule('8, 0.95; 25', COARSE, confidence=0.95, refine=25),
    Schedule('8, 0.95', COARSE, confidence=0.95),
    Schedule('8, first 16, 0.95', COARSE, first=16, confidence=0.95),
    Schedule('8, indifference 0.003', COARSE, confidence=None, indifference=0.003),
    Schedule('8, indifference 0.01', COARSE, confidence=None, indifference=0.01),
    Schedule('8, 0.95, at most 4 then 2', COARSE, confidence=0.95, keep=(4, 2)),
    Schedule('8, 0.95, at most 4 then 2; 25', COARSE, confidence=0.95, keep=(4, 2), refine=25),
)


def main() -> None:
    """Replay, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('cases', nargs='+', metavar='MODEL_CORRUPTION')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/place'))
    options = parser.parse_args()
    played = {name: replays(options.out / f'{name}.npz') for name in options.cases}
    rows = []
    for schedule in SCHEDULES:
        row = dict(schedule=schedule.name)
        for number, kind in enumerate(('joint', 'one place')):
            passes, added, shares = [], [], []
            for pairs in played.values():
                for pair in pairs:
                    *_, reference = SCHEDULES[0].play(pair[number])
                    count, flops, found = schedule.play(pair[number])
                    passes.append(count)
                    shares.append(flops / pair[number].full_flops)
                    added.append(reference - found)
            by_case = np.reshape(added, (len(played), -1)).mean(1)
            error = by_case.std(ddof=1) / len(by_case) ** 0.5 if len(by_case) > 1 else np.nan
            row[f'{kind}: passes'] = f'{np.mean(passes):,.0f}'
            row[f'{kind}: less by'] = f'{FULL_PASSES / np.mean(passes):.1f}'
            if kind == 'joint':  # in one place all passes are equal
                row['joint: FLOPs less by'] = f'{1 / np.mean(shares):.1f}'
            row[f'{kind}: added regret'] = f'{by_case.mean():.2f} ± {error:.2f}'
            row[f'{kind}: worst'] = f'{max(added):.1f}'
        rows.append(row)
    print(f'{SETS} selections in each of {len(played)} cases\n')
    print(markdown_table(rows))


if __name__ == '__main__':
    main()
