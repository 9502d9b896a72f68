# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
r"""Where to read: what the joint pick of block, feature and timestep loses, and what joining gains.

A case is a model on (perhaps corrupted) images. The mean features of all cells (block, feature,
timestep) are extracted once: of training and test images for a linear probe of each cell, and of
the views of calibration images for the score. The rest is arithmetic on what is stored.

Examples:
  # two cases, then the table of all that was measured
  python benchmarks/place.py digits_clean digits_noise --data-root data --out work_dirs/place
  # models of your own, on the digits or on other data
  python benchmarks/place.py mine_clean mine_noise --model mine=runs/mine/pipeline --features 3
  python benchmarks/place.py latent_motion --model latent=runs/latent/pipeline@cifar10
  # other ridges, and the first blocks left out
  python benchmarks/place.py digits_clean digits_noise --rules
"""

from __future__ import annotations

import argparse
import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from mmengine.registry import init_default_scope
from race import sensitivities
from small_models import read_model
from torch import Tensor

from mmaselect.analysis.criteria_benchmark import CorruptedLabels, split_images
from mmaselect.analysis.encoded import EncodedImages
from mmaselect.analysis.linear_probe import ProbeOptions, fit_probe
from mmaselect.diffusion import TapKey
from mmaselect.diffusion.pass_cost import count_flops
from mmaselect.images.labeled import LabeledImages
from mmaselect.images.views import ViewOptions
from mmaselect.openmmlab.dataset_images import build_dataset
from mmaselect.selection.criteria.view_pairs import (
    SENSITIVITY_RIDGE,
)
from mmaselect.selection.place import choose_features
from mmaselect.terminal.tables import markdown_table

FEATURES = ('query', 'key', 'value', 'attention', 'output')
MODELS = dict(
    digits=('mmaselect://dit_digits', 'digits'),
    cifar=('mmaselect://dit_cifar10', 'cifar10'),
    cifar_on_digits=('mmaselect://dit_cifar10', 'digits'),
)
CORRUPTIONS = dict(
    clean=(None, 0),
    noise=('noise', 2),
    impulse=('impulse', 2),
    contrast=('contrast', 3),
    motion=('motion_blur', 2),
    low_light=('low_light', 2),
    blur=('blur', 2),
    jpeg=('jpeg', 2),
)
GRID = (0, 25, 50, 75, 100, 150, 200, 300)
#: Deep blocks of a flow-matching model are best at more noise.
FLOW_GRID = (0, 25, 50, 100, 150, 200, 300, 400, 500)
#: Timesteps that views are read at; the others are for benchmarks/bill.py.
VIEW_GRID = range(0, 1000, 25)
#: Cases that ridge, depth and the fill of views were chosen on. The others are held out.
DECIDED = (
    'digits_clean',
    'digits_noise',
    'digits_contrast',
    'cifar_clean',
    'cifar_noise',
    'cifar_impulse',
    'cifar_on_digits_clean',
    'flow_clean',
    'flow_noise',
)
#: Images of one selection, and how many selections there are: from all images, drawn at random.
SET, SETS = 128, 12
#: Random halves of the test images, for the cross-fitted regret.
SPLITS = 25
RIDGES = (0.1, 0.05, 0.03, 0.02, 0.01)
CONSTANTS = (0, 25, 50, 100, 200)


def pool(maps: Mapping[TapKey, Tensor], taps: tuple[TapKey, ...]) -> Tensor:
    """Mean over tokens: (cells, B, D)."""
    return torch.stack([maps[tap].float().mean((2, 3)) for tap in taps])


def collect(
    name: str, models: Mapping[str, tuple[str, str]], options: argparse.Namespace
) -> dict[str, np.ndarray]:
    """The features of a case, from its file or from the model.

    Raises:
        ValueError: If there is no such case.
    """
    path = options.out / f'{name}.npz'
    if path.exists():
        return dict(np.load(path))
    model, _, kind = name.rpartition('_')
    if model not in models or kind not in CORRUPTIONS:
        raise ValueError(
            f'{name!r} is not a case: give MODEL_CORRUPTION, with a model of {sorted(models)} and '
            f'a corruption of {sorted(CORRUPTIONS)}'
        )
    pretrained, data = models[model]
    init_default_scope('mmpretrain')
    dit = read_model(pretrained, features=FEATURES)
    flow = 'Flow' in type(dit.process).__name__
    grid = FLOW_GRID if flow else GRID

    def images(split: str, count: int) -> LabeledImages:
        folder = dict(type='mmpretrain.CustomDataset', data_root=str(options.data_root / data))
        source = CorruptedLabels(build_dataset({**folder, 'data_prefix': split}), 'classification')
        source.corruption, source.severity = CORRUPTIONS[kind]
        source.seed = 1 + (split == 'test')
        return LabeledImages(source, dit.native_size, count, 0)

    every = images('train', options.num_train + options.num_images)
    train, calibration = split_images(every, options.num_train)
    parts = {
        'train': EncodedImages(dit, train, 100),
        'test': EncodedImages(dit, images('test', options.num_test), 100, first=len(every)),
    }
    viewed = EncodedImages(dit, calibration.with_views(ViewOptions()), 64)
    flops = count_flops(dit, dit.native_size)
    arrays = dict(
        taps=np.array([f'{block},{feature}' for block, feature in dit.keys]),
        grid=np.array(grid),
        flops=np.array([flops[key] for key in dit.keys]),
        **{f'labels_{part}': images.labels.numpy() for part, images in parts.items()},
    )
    for step in grid:
        for part, images_ in parts.items():
            pooled = [pool(batch.draws[0], dit.keys) for batch in images_.features(step)]
            arrays[f'{part}_{step}'] = torch.cat(pooled, 1).half().numpy()
        print(f'{name}: timestep {step}', flush=True)
    for step in sorted({*grid, *(() if options.probed_only else VIEW_GRID)}):
        views = [
            torch.stack(
                [pool(dit.features(r.latent, step, r.noise), dit.keys) for r in batch.views], 2
            )
            for batch in viewed.batches(1)
        ]
        arrays[f'views_{step}'] = torch.cat(views, 1).half().numpy()
    probes = [[probe(arrays, step, [cell]) for step in grid] for cell in range(len(arrays['taps']))]
    arrays['hits'] = np.array(probes)
    options.out.mkdir(parents=True, exist_ok=True)
    np.savez(path, **arrays)
    return arrays


def probe(arrays: Mapping[str, np.ndarray], step: int, cells: list[int]) -> np.ndarray:
    """Whether a linear probe of some cells, joined, is right: (test images,)."""
    fit, test = (
        arrays[f'train_{step}'].astype(np.float32),
        arrays[f'test_{step}'].astype(np.float32),
    )
    one, other = (np.concatenate([part[cell] for cell in cells], 1) for part in (fit, test))
    labels = arrays['labels_train']
    fitted = fit_probe(one, labels, int(labels.max()) + 1, ProbeOptions())
    return fitted.predict(other) == arrays['labels_test']


def scores(
    arrays: Mapping[str, np.ndarray], ridge: float, count: int = SETS, size: int = SET
) -> np.ndarray:
    """Sensitivity on each set of calibration images: (sets, cells, timesteps)."""
    total = arrays['views_0'].shape[1]
    rng = np.random.default_rng(0)
    sets = [rng.permutation(total)[:size] for _ in range(count if total > size else 1)]
    found = []
    for step in arrays['grid']:
        rows = torch.from_numpy(arrays[f'views_{step}'])
        found.append([sensitivities(rows[:, images].float(), ridge).mean(1) for images in sets])
    return np.array(found).transpose(1, 2, 0)


def cross_fitted(hits: np.ndarray, cell: int) -> float:
    """Regret against a best cell that is found on other test images than it is measured on."""
    rng = np.random.default_rng(0)
    count, values = hits.shape[1], []
    for _ in range(SPLITS):
        order = rng.permutation(count)
        one, other = order[: count // 2], order[count // 2 :]
        for chosen, measured in ((one, other), (other, one)):
            best = hits[:, chosen].mean(1).argmax()
            values.append(hits[best, measured].mean() - hits[cell, measured].mean())
    return 100 * float(np.mean(values))


@dataclass(frozen=True)
class Picked:
    """What a rule picks in each set of calibration images of a case.

    Attributes:
        accuracy: (cells, timesteps), of the probes, in percent.
        cells: (sets,), the cell of each pick.
        steps: (sets,), its position on the grid.
    """

    accuracy: np.ndarray
    cells: np.ndarray
    steps: np.ndarray

    @property
    def found(self) -> np.ndarray:
        """Accuracy at each pick."""
        return self.accuracy[self.cells, self.steps]

    @property
    def regret(self) -> np.ndarray:
        """What each pick loses to the best of all cells."""
        return self.accuracy.max() - self.found

    @property
    def regret_of_place(self) -> np.ndarray:
        """What the best timestep of each picked cell loses to the best of all cells."""
        return self.accuracy.max() - self.accuracy[self.cells].max(1)

    @property
    def regret_of_time(self) -> np.ndarray:
        """What each pick loses to the best timestep of its cell."""
        return self.regret - self.regret_of_place


def pick(accuracy: np.ndarray, found: np.ndarray, among: Sequence[int]) -> Picked:
    """The cell and timestep of the highest score among some cells, in each set."""
    part = found[:, among]
    flat = part.reshape(len(part), -1).argmax(1)
    cells, steps = np.unravel_index(flat, part.shape[1:])
    return Picked(accuracy, np.array(among)[cells], steps)


def taps_of(arrays: Mapping[str, np.ndarray]) -> list[TapKey]:
    """Block and feature of each cell."""
    return [(int(tap.split(',')[0]), tap.split(',')[1]) for tap in arrays['taps']]


def row_of(name: str, arrays: Mapping[str, np.ndarray], options: argparse.Namespace) -> dict:
    """One row of the table, the mean over sets of calibration images."""
    taps, grid, hits = taps_of(arrays), arrays['grid'].tolist(), arrays['hits']
    accuracy, found = 100 * hits.mean(2), scores(arrays, options.ridge)
    middle = taps.index(((max(block for block, _ in taps) + 1) // 2, 'query'))
    today, joint = pick(accuracy, found, [middle]), pick(accuracy, found, range(len(taps)))
    flat = hits.reshape(-1, hits.shape[-1]).astype(np.float32)
    picks = list(zip(joint.cells.tolist(), joint.steps.tolist(), strict=True))
    ((cell, step), times), *_ = Counter(picks).most_common()
    crossed = [cross_fitted(flat, cell * len(grid) + step) for cell, step in picks]
    total = arrays['views_0'].shape[1]
    every = pick(accuracy, scores(arrays, options.ridge, 1, total), range(len(taps)))
    row = dict(
        case=name,
        decided='yes' if name in DECIDED else 'no',
        best=accuracy.max(),
        middle=today.found.mean(),
        middle_best_t=accuracy[middle].max(),
        joint=joint.found.mean(),
        regret=joint.regret.mean(),
        worst=joint.regret.max(),
        cross_fitted=np.mean(crossed),
        of_place=joint.regret_of_place.mean(),
        of_time=joint.regret_of_time.mean(),
        all_images=every.regret.mean(),
        middle_regret=today.regret.mean(),
        middle_of_time=today.regret_of_time.mean(),
        always_0=accuracy.max() - accuracy[middle, 0],
        pick=f'{taps[cell][1]} of {taps[cell][0]}, t = {grid[step]} ({times} of {len(picks)})',
    )
    if options.features > 1:
        views = torch.from_numpy(arrays[f'views_{grid[step]}'])[:, :SET]
        chosen = choose_features(
            dict(zip(taps, views, strict=True)), taps[cell], options.features, options.ridge
        )
        together = probe(arrays, grid[step], [taps.index(tap) for tap in chosen])
        row[f'{options.features} joined'] = 100 * together.mean()
    return row


def rules(cases: Mapping[str, Mapping[str, np.ndarray]]) -> list[dict]:
    """What other ridges lose, and what it loses to leave the first blocks out."""
    rows = []
    for ridge in RIDGES:
        row: dict = dict(ridge=ridge)
        time = []
        regrets: dict[str, list[float]] = {}
        for arrays in cases.values():
            taps, accuracy = taps_of(arrays), 100 * arrays['hits'].mean(2)
            found = scores(arrays, ridge, SETS // 4)
            depth = max(block for block, _ in taps) + 1
            left_out = {'all blocks': 0, 'without block 0': 1, 'without the first third': depth / 3}
            for rule, first in left_out.items():
                among = [i for i, (block, _) in enumerate(taps) if block >= first]
                regrets.setdefault(rule, []).append(pick(accuracy, found, among).regret.mean())
            for i, (_, feature) in enumerate(taps):
                if feature == 'query':
                    time.append(pick(accuracy, found, [i]).regret_of_time.mean())
        for rule, values in regrets.items():
            row[rule], row[f'{rule}, worst'] = np.mean(values), max(values)
        row['queries: regret of the time'] = np.mean(time)
        rows.append(row)
    return rows


def times(cases: Mapping[str, Mapping[str, np.ndarray]], ridge: float) -> list[dict]:
    """What the timestep alone loses in the queries of all blocks but the first, and constants."""
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for name, arrays in cases.items():
        accuracy, score = 100 * arrays['hits'].mean(2), scores(arrays, ridge)
        grid = arrays['grid'].tolist()
        values: dict[str, list[tuple[float, float]]] = {}
        for cell, (block, feature) in enumerate(taps_of(arrays)):
            if feature != 'query' or block == 0:
                continue
            picks = {'InstanceSensitivity': pick(accuracy, score, [cell]).steps.tolist()}
            picks |= {f'always {t}': [grid.index(t)] for t in CONSTANTS}
            for rule, steps in picks.items():
                regrets = [accuracy[cell].max() - accuracy[cell, step] for step in steps]
                hits = arrays['hits'][cell].astype(np.float32)
                crossed = {step: cross_fitted(hits, step) for step in set(steps)}
                pair = np.mean(regrets), np.mean([crossed[step] for step in steps])
                values.setdefault(rule, []).append(pair)
        for rule, pairs in values.items():
            held = 'decided on' if name in DECIDED else 'held out'
            found.setdefault((rule, held), []).append(tuple(np.mean(pairs, 0)))
    rows: dict[str, dict] = {}
    for (rule, held), pairs in found.items():
        regret, crossed = np.array(pairs).T
        rows.setdefault(rule, dict(rule=rule)).update(
            {
                f'{held}: regret': regret.mean(),
                f'{held}: worst case': regret.max(),
                f'{held}: cross-fitted': crossed.mean(),
            }
        )
    return list(rows.values())


def rounded(rows: Sequence[Mapping]) -> list[dict]:
    """Rows as text, with two digits behind the point."""
    return [
        {key: f'{value:.2f}' if isinstance(value, float) else value for key, value in row.items()}
        for row in rows
    ]


def means(rows: Sequence[Mapping]) -> list[dict]:
    """The mean of all numbers over the cases that were decided on, and over the others."""
    found = []
    for decided in ('yes', 'no'):
        part = [row for row in rows if row['decided'] == decided]
        if part:
            numbers = {
                key: float(np.mean([row[key] for row in part]))
                for key, value in part[0].items()
                if not isinstance(value, str)
            }
            found.append(dict(case=f'mean of {len(part)}', decided=decided, **numbers, pick=''))
    return found


def main() -> None:
    """Collect, print the table, and write it as CSV."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('cases', nargs='+', metavar='MODEL_CORRUPTION')
    parser.add_argument('--data-root', type=Path, default=Path('data'))
    parser.add_argument('--out', type=Path, default=Path('work_dirs/place'))
    parser.add_argument(
        '--model',
        nargs='*',
        default=[],
        metavar='NAME=FOLDER[@DATA]',
        help='read on digits, or on other data of --data-root',
    )
    parser.add_argument('--num-train', type=int, default=600)
    parser.add_argument('--num-test', type=int, default=1000)
    parser.add_argument(
        '--num-images', type=int, default=384, help=f'that {SETS} selections draw {SET} from'
    )
    parser.add_argument(
        '--probed-only', action='store_true', help='no views at other timesteps than the probes'
    )
    parser.add_argument('--ridge', type=float, default=SENSITIVITY_RIDGE)
    parser.add_argument('--features', type=int, default=1, help='joined, of one pass')
    parser.add_argument('--rules', action='store_true', help='compare ridges and depths')
    parser.add_argument('--times', action='store_true', help='the timestep alone, of queries')
    options = parser.parse_args()
    models = dict(MODELS)
    for entry in options.model:
        name, _, place = entry.partition('=')
        folder, _, data = place.partition('@')
        models[name] = (folder, data or 'digits')
    cases = {name: collect(name, models, options) for name in options.cases}
    if options.rules:
        print(markdown_table(rounded(rules(cases))))
        return
    if options.times:
        print(markdown_table(rounded(times(cases, options.ridge))))
        return
    rows = [row_of(name, arrays, options) for name, arrays in cases.items()]
    print(markdown_table(rounded([*rows, *means(rows)])))
    with open(options.out / 'place.csv', 'w', newline='') as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rounded(rows))


if __name__ == '__main__':
    main()
