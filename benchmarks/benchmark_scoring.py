# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Scoring next to the sweep that it belongs to: seconds on a CPU, FLOPs for an accelerator.

    OMP_NUM_THREADS=1 python benchmarks/benchmark_scoring.py

The default criterion is timed on random descriptors of the widths of published models, as it
whitens now, and by the covariance of all channels alone, as before. A race is replayed at its
longest, where no timestep is ever dropped: scores are computed after each round. Until they were
kept, they were computed once more at the end.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from common import describe, parser
from cost import MODELS, count, flops
from torch import Tensor
from torch.nn import functional as F

from mmaselect.selection import InstanceSensitivity
from mmaselect.selection.criteria.view_pairs import (
    SENSITIVITY_RIDGE,
    standardized_match,
    whiten_pairs,
)
from mmaselect.selection.defaults import FIRST_IMAGES
from mmaselect.selection.race import round_ends

TIMESTEPS = 40
VIEWS = 2
#: Dense 16-bit and plain float64 products of an A100, FLOP/s, and the share of both that is used.
A100_16_BIT, A100_FLOAT64, USED = 312e12, 9.7e12, 0.4


def whiten_by_covariance(first: Tensor, second: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """What :func:`whiten_pairs` does with narrow descriptors, for any width."""
    rows = torch.cat([first, second]).double()
    rows = rows - rows.mean(0)
    covariance = rows.mT @ rows / len(rows)
    covariance.diagonal().add_(ridge * covariance.diagonal().mean())
    factor = torch.linalg.cholesky(covariance)
    white = torch.linalg.solve_triangular(factor, rows.mT, upper=False).mT
    one, other = F.normalize(white, dim=1).tensor_split(2)
    return one, other


def scoring_flops(images: int, width: int) -> float:
    """FLOPs of one score: the products that PyTorch counts, and the factorization."""
    rows = torch.zeros(images, width, device='meta')
    size = min(width, VIEWS * images)
    solving = VIEWS * images * size**2 * (2 if width > VIEWS * images else 1)
    counted = flops(lambda: standardized_match(*whiten_pairs(rows, rows, SENSITIVITY_RIDGE)))
    return counted + size**3 / 3 + solving


@dataclass
class Scoring:
    """Seconds of all scores of one (block, feature)."""

    before: float = 0.0
    after: float = 0.0
    flops: float = 0.0


def measure(width: int, ends: list[int], repeats: int, clock: Callable[[], float]) -> Scoring:
    """Scores of 40 timesteps after each round, from the least of some repeats of one timestep."""
    found = Scoring()
    # Before, the last of them came twice.
    for images, times_before in zip([*ends, ends[-1]], [1] * len(ends) + [0], strict=True):
        torch.manual_seed(0)
        first = torch.randn(images, width)
        second = first + torch.randn(images, width)

        def least(whiten: Callable[..., tuple[Tensor, Tensor]], pair=(first, second)) -> float:
            seconds = []
            for _ in range(repeats):
                start = clock()
                standardized_match(*whiten(*pair, SENSITIVITY_RIDGE))
                seconds.append(clock() - start)
            return TIMESTEPS * min(seconds)

        found.before += least(whiten_by_covariance)
        if times_before:
            found.after += least(whiten_pairs)
            found.flops += TIMESTEPS * scoring_flops(images, width)
    return found


def main() -> None:
    """Measure and print."""
    arguments = parser(__doc__)
    arguments.add_argument('--images', type=int, default=FIRST_IMAGES)
    args = arguments.parse_args()
    ends = round_ends(InstanceSensitivity(), args.images, race=True)
    print(describe())
    print(
        f'{args.images} images in rounds of {", ".join(map(str, ends))}, {TIMESTEPS} timesteps, '
        f'one (block, feature).\n'
    )
    print(
        '| model | channels | before, s | now, s | times | of a sweep on this CPU | sweep, PFLOP | '
        'sweep on an A100, s | before, of that | all scores, GFLOP in float64 | '
        'scores on an A100, of its sweep |'
    )
    print('|' + '---|' * 11)
    rate = cpu_rate(time.process_time)
    for model in MODELS:
        cost = count(model)
        width = cost.width
        found = measure(width, ends, args.rounds, time.process_time)
        sweep = VIEWS * args.images * (cost.encoder + TIMESTEPS * cost.read)
        card = sweep / (A100_16_BIT * USED)
        print(
            f'| {model.name} | {width:,} | {found.before:.2f} | {found.after:.2f} | '
            f'{found.before / found.after:.1f} | {found.after / (sweep / rate):.4%} | '
            f'{sweep / 1e15:.2f} | {card:.0f} | {found.before / card:.1%} | '
            f'{found.flops / 1e9:.0f} | {found.flops / (A100_FLOAT64 * USED) / card:.3%} |'
        )
    print(f'\nProducts in float32 run at {rate / 1e9:.0f} GFLOP/s here.')


def cpu_rate(clock: Callable[[], float]) -> float:
    """FLOP/s of a product of large matrices in float32."""
    size = 1536
    matrix = torch.randn(size, size)
    seconds = []
    for _ in range(4):
        start = clock()
        matrix @ matrix
        seconds.append(clock() - start)
    return 2 * size**3 / min(seconds)


if __name__ == '__main__':
    main()
