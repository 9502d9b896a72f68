# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Racing against the full sweep: the same pick, for how much less, and what another pick costs.

    python benchmarks/race.py digits_clean --out work_dirs/race
    python benchmarks/race.py cifar10_clean --pool 256 --out work_dirs/race

What each image adds to each criterion is computed once, for more images than a selection takes
(--pool, at each timestep of the grid, in every block), and kept in --out. Calibration sets are
then drawn from the pool, and on each the full sweep and the race are run on what is stored, by the
package's own functions: the criterion on those images, and `contenders`. Cases are those of
criteria_cases.py, with their data under data/. Probes are those of docs/data (linear probes at a
few timesteps; what lies between two of them is interpolated, what lies beyond the last is as good
as the last).
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from mmengine.registry import init_default_scope
from torch import Tensor
from torch.nn import functional as F

from mmaselect.analysis.criteria_benchmark import CorruptedLabels, load_cases
from mmaselect.analysis.encoded import EncodedImages
from mmaselect.diffusion import FrozenDiT
from mmaselect.images.labeled import LabeledImages
from mmaselect.images.views import ViewOptions
from mmaselect.openmmlab.dataset_images import build_dataset
from mmaselect.selection import InstanceSensitivity
from mmaselect.selection.criteria.view_pairs import SENSITIVITY_RIDGE
from mmaselect.selection.race import contenders
from mmaselect.selection.scoring import StepScores, build_criteria, score_step, start_meters

HERE = Path(__file__).parent
CRITERIA = {
    'InstanceSensitivity': dict(type='InstanceSensitivity'),
    'HighFrequencyRatio': dict(type='HighFrequencyRatio'),
    'CrossSpectrumHFR': dict(type='CrossSpectrumHFR'),
}


@dataclass(frozen=True)
class Pool:
    """What images add to criteria: criterion, block and timestep to an array, an image a row.

    Of a criterion that compares views these are the descriptors of both, (N, 2, D); of the others
    numerator and denominator, (N, 2).
    """

    arrays: Mapping[str, np.ndarray]

    @property
    def blocks(self) -> list[int]:
        return sorted({int(name.split('/')[1]) for name in self.arrays})

    @property
    def timesteps(self) -> list[int]:
        return sorted({int(name.split('/')[2]) for name in self.arrays})

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def terms(
        self, criterion: str, block: int, timesteps: Sequence[int], images: np.ndarray
    ) -> np.ndarray:
        """What some images add at some timesteps, (T, n, 2), when they are all there is."""
        rows = np.stack([self.arrays[f'{criterion}/{block}/{t}'][images] for t in timesteps])
        if criterion != 'InstanceSensitivity':
            return rows.astype(float)
        values = sensitivities(torch.from_numpy(rows)).numpy()
        return np.stack([values, np.ones_like(values)], -1)


def sensitivities(rows: Tensor, ridge: float = SENSITIVITY_RIDGE) -> Tensor:
    """``InstanceSensitivity`` of each image, for many timesteps at once; it is checked against it.

    Args:
        rows: (T, N, 2, D), descriptors of both views.
        ridge: That of the criterion.

    Returns:
        (T, N), float64.
    """
    pairs = torch.cat(rows.double().unbind(2), 1)
    pairs = pairs - pairs.mean(1, keepdim=True)
    covariance = pairs.mT @ pairs / pairs.shape[1]
    diagonal = covariance.diagonal(dim1=1, dim2=2)
    diagonal += ridge * diagonal.mean(1, keepdim=True)
    factor = torch.linalg.cholesky(covariance)
    white = torch.linalg.solve_triangular(factor, pairs.mT, upper=False).mT
    first, second = F.normalize(white, dim=2).tensor_split(2, 1)
    similar = first @ second.mT
    own = similar.diagonal(dim1=1, dim2=2)
    values = torch.zeros_like(own)
    for axis in (1, 2):
        std, mean = torch.std_mean(similar, axis, correction=0)
        values += (own - mean) / std / 2
    return values


def check_sensitivities(pool: Pool) -> None:
    """Check that the shortcut above gives what the criterion gives."""
    for timestep in pool.timesteps[::10]:
        rows = torch.from_numpy(
            pool.arrays[f'InstanceSensitivity/{pool.blocks[-1]}/{timestep}'][:48]
        )
        meter = InstanceSensitivity()
        meter.width = torch.tensor(rows.shape[2])
        meter.pairs = [rows.flatten()]
        torch.testing.assert_close(sensitivities(rows[None])[0], meter.image_values())


def collect(name: str, pool: int, out: Path) -> Pool:
    """The pool of a case, from its file or from the model."""
    path = out / f'{name}.npz'
    if path.exists():
        return Pool(dict(np.load(path)))
    (case,) = [case for case in load_cases(HERE / 'criteria_cases.py')[1] if case.name == name]
    init_default_scope('mmpretrain')
    dit = FrozenDiT.from_pretrained(case.pretrained)
    blocks = list(range(1, dit.family.num_blocks))
    dit = FrozenDiT.from_pretrained(case.pretrained, blocks=blocks, feature='query')
    source = CorruptedLabels(build_dataset(case.train), case.task)
    source.corruption, source.severity = case.corruption, case.severity
    images = LabeledImages(source, dit.native_size, pool, case.seed).with_views(ViewOptions())
    encoded = EncodedImages(dit, images, 64, case.seed)
    criteria = build_criteria(list(CRITERIA.values()))
    arrays = {}
    for step in range(0, dit.num_train_timesteps, 25):
        meters = start_meters(criteria, dit.keys, dit.device)
        for batch in encoded.batches(2):
            score_step(dit, batch, step, meters)
        for ((block, _), criterion), meter in meters.items():
            rows = (
                torch.cat(meter.pairs).reshape(len(images), 2, -1)
                if criterion == 'InstanceSensitivity'
                else meter.compute()['per_image']
            )
            arrays[f'{criterion}/{block}/{step}'] = rows.float().numpy()
        print(f'{name}: timestep {step}', flush=True)
    out.mkdir(parents=True, exist_ok=True)
    np.savez(path, **arrays)
    return Pool(arrays)


class Selection:
    """A selection on some images of a pool, by one criterion in one block.

    Args:
        pool: The pool.
        criterion: Name.
        block: Index.
        images: Rows of the pool, in the order in which they are taken.
    """

    def __init__(self, pool: Pool, criterion: str, block: int, images: np.ndarray) -> None:
        self.pool, self.criterion, self.block, self.images = pool, criterion, block, images
        self.key = ((block, 'query'), criterion)
        self._steps: dict[tuple[int, int], StepScores] = {}

    def steps(self, timesteps: Sequence[int], count: int) -> list[StepScores]:
        """Scores of some timesteps on the first images."""
        new = [step for step in timesteps if (step, count) not in self._steps]
        if new:
            terms = self.pool.terms(self.criterion, self.block, new, self.images[:count])
            for step, rows in zip(new, terms, strict=True):
                value = dict(score=rows[:, 0].sum() / rows[:, 1].sum(), nonfinite=0.0)
                self._steps[step, count] = StepScores(
                    step, 0.0, None, {self.key: value}, {self.key: rows}, count
                )
        return [self._steps[step, count] for step in timesteps]

    def best(self, timesteps: Sequence[int], count: int) -> int:
        """The one that scores best on the first images."""
        scores = [step.values[self.key]['score'] for step in self.steps(timesteps, count)]
        return timesteps[int(np.argmax(scores))]

    def full(self) -> int:
        """The pick of the full sweep."""
        return self.best(self.pool.timesteps, len(self.images))

    def race(self, first: int, confidence: float) -> tuple[int, int]:
        """The pick of a race, and the pairs of an image and a timestep that it scored."""
        left, seen, pairs, end = self.pool.timesteps, 0, 0, min(first, len(self.images))
        while True:
            pairs += len(left) * (end - seen)
            if end == len(self.images):
                break
            left = contenders(
                self.steps(left, end), self.criterion, [(self.block, 'query')], confidence
            )
            if len(left) == 1:
                break
            seen, end = end, min(2 * end, len(self.images))
        return self.best(left, end), pairs


def probe_curves() -> dict[tuple[str, int], dict[int, float]]:
    """Accuracy at the timesteps that were probed, by case and block."""
    curves: dict[tuple[str, int], dict[int, float]] = defaultdict(dict)
    with open(HERE.parent / 'docs/data/criteria_benchmark.csv', newline='') as file:
        for row in csv.DictReader(file):
            curve = curves[row['case'], int(row['block'])]
            curve[int(row['pick'])] = float(row['metric'])
            curve[int(row['best'])] = float(row['best_metric'])
    return curves


def accuracy(curve: Mapping[int, float], timestep: int) -> float:
    """A probe's accuracy at a timestep, interpolated."""
    return float(np.interp(timestep, sorted(curve), [curve[step] for step in sorted(curve)]))


def replay(
    pool: Pool, name: str, criterion: str, options: argparse.Namespace
) -> Iterator[dict[str, object]]:
    """Full sweep against races on many calibration sets, a row for each race and block."""
    curves = probe_curves()
    (prototype,) = build_criteria([CRITERIA[criterion]]).values()
    firsts = options.first or [prototype.race_from]
    for block in pool.blocks:
        curve = curves.get((name, block))
        rng = np.random.default_rng(0)
        found = defaultdict(list)
        for _ in range(options.sets):
            images = rng.permutation(len(pool))[: options.num_images]
            selection = Selection(pool, criterion, block, images)
            full = selection.full()
            races = {
                (first, confidence): selection.race(first, confidence)
                for first in firsts
                for confidence in options.confidence
            }
            for key, (pick, pairs) in races.items():
                found[key].append((full, pick, pairs))
        for (first, confidence), rows in found.items():
            full, raced, pairs = np.array(rows).T
            row = dict(
                case=name,
                criterion=criterion,
                block=block,
                first=first,
                confidence=confidence,
                agreement=float((full == raced).mean()),
                neighbors=float((abs(full - raced) <= 25).mean()),
                pairs=float(pairs.mean()),
                pairs_full=len(pool.timesteps) * options.num_images,
            )
            if curve:
                best = max(curve.values())
                for who, picks in (('full', full), ('race', raced)):
                    regrets = [best - accuracy(curve, pick) for pick in picks]
                    row[f'regret_{who}'] = float(np.mean(regrets))
            yield row


def describe_row(row: Mapping[str, object]) -> str:
    """One line."""
    return ', '.join(
        f'{name} {value:.4g}' if isinstance(value, float) else f'{name} {value}'
        for name, value in row.items()
    )


def main() -> None:
    """Collect, replay, print a table and write the rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('cases', nargs='+', help='names of criteria_cases.py')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/race'))
    parser.add_argument('--pool', type=int, default=384, help='images; default: 384')
    parser.add_argument('--num-images', type=int, default=128, help='of a selection')
    parser.add_argument('--sets', type=int, default=200, help='calibration sets; default: 200')
    parser.add_argument('--criteria', nargs='+', choices=CRITERIA, default=list(CRITERIA))
    parser.add_argument(
        '--first', nargs='+', type=int, help="images of the first round; default: the criterion's"
    )
    parser.add_argument('--confidence', nargs='+', type=float, default=[0.99, 0.999])
    options = parser.parse_args()
    rows = []
    for name in options.cases:
        pool = collect(name, options.pool, options.out)
        check_sensitivities(pool)
        for criterion in options.criteria:
            for row in replay(pool, name, criterion, options):
                rows.append(row)
                print(describe_row(row), flush=True)
    with open(options.out / 'race.csv', 'w', newline='') as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


if __name__ == '__main__':
    main()
