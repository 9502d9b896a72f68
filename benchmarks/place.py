# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
r"""Where to read: what the joint pick of block, feature and timestep loses, and what joining gains.

A case is a model on (perhaps corrupted) images. The mean features of all cells (block, feature,
timestep) are extracted once: of training and test images for a linear probe of each cell, and of
the views of calibration images for the score. The rest is arithmetic on what is stored.

Examples:
  # two cases, then the table of all that was measured
  python benchmarks/place.py digits_clean digits_noise --data-root data --out work_dirs/place
  # a model of your own on the digits
  python benchmarks/place.py mine_clean mine_noise --model mine=runs/mine/pipeline --features 3
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from mmengine.registry import init_default_scope
from torch import Tensor

from mmaselect.analysis.criteria_benchmark import CorruptedLabels, split_images
from mmaselect.analysis.encoded import EncodedImages
from mmaselect.analysis.linear_probe import ProbeOptions, fit_probe
from mmaselect.diffusion import FrozenDiT, TapKey
from mmaselect.images.labeled import LabeledImages
from mmaselect.images.views import ViewOptions
from mmaselect.openmmlab.dataset_images import build_dataset
from mmaselect.selection.criteria.view_pairs import standardized_match, whiten_pairs
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
#: Images of one selection.
SET = 128
#: Random halves of the test images, for the cross-fitted regret.
SPLITS = 25


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
    blocks = range(FrozenDiT.from_pretrained(pretrained, blocks=0).num_blocks)
    dit = FrozenDiT.from_pretrained(pretrained, blocks=list(blocks), features=FEATURES)
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
    arrays = dict(
        taps=np.array([f'{block},{feature}' for block, feature in dit.keys]),
        grid=np.array(grid),
        **{f'labels_{part}': images.labels.numpy() for part, images in parts.items()},
    )
    for step in grid:
        for part, images_ in parts.items():
            pooled = [pool(batch.draws[0], dit.keys) for batch in images_.features(step)]
            arrays[f'{part}_{step}'] = torch.cat(pooled, 1).half().numpy()
        views = [
            torch.stack(
                [pool(dit.features(r.latent, step, r.noise), dit.keys) for r in batch.views], 2
            )
            for batch in viewed.batches(1)
        ]
        arrays[f'views_{step}'] = torch.cat(views, 1).half().numpy()
        print(f'{name}: timestep {step}', flush=True)
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


def scores(arrays: Mapping[str, np.ndarray], ridge: float) -> np.ndarray:
    """Sensitivity on each set of calibration images: (sets, cells, timesteps)."""
    found = []
    for step in arrays['grid']:
        rows = torch.from_numpy(arrays[f'views_{step}'])
        found.append(
            [
                [
                    float(standardized_match(*whiten_pairs(*part.unbind(1), ridge)).mean())
                    for part in cell.split(SET)
                    if len(part) == SET
                ]
                for cell in rows
            ]
        )
    return np.array(found).transpose(2, 1, 0)


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


def rows_of(name: str, arrays: Mapping[str, np.ndarray], options: argparse.Namespace) -> dict:
    """One row of the table, the mean over sets of calibration images."""
    taps = [(int(tap.split(',')[0]), tap.split(',')[1]) for tap in arrays['taps']]
    grid, hits = arrays['grid'].tolist(), arrays['hits']
    accuracy = 100 * hits.mean(2)
    found = scores(arrays, options.ridge)
    middle = taps.index(((max(block for block, _ in taps) + 1) // 2, 'query'))
    today = [(middle, int(one[middle].argmax())) for one in found]
    joint = [np.unravel_index(one.argmax(), one.shape) for one in found]
    flat = hits.reshape(-1, hits.shape[-1]).astype(np.float32)
    cell, step = joint[0]
    row = dict(
        case=name,
        best=f'{accuracy.max():.1f}',
        middle=f'{np.mean([accuracy[place] for place in today]):.1f}',
        **{'middle, best t': f'{accuracy[middle].max():.1f}'},
        joint=f'{np.mean([accuracy[place] for place in joint]):.1f}',
        pick=f'{taps[cell][1]} of {taps[cell][0]}, t = {grid[step]}',
        regret=f'{np.mean([accuracy.max() - accuracy[place] for place in joint]):.1f}',
        worst=f'{max(accuracy.max() - accuracy[place] for place in joint):.1f}',
    )
    places = [int(np.ravel_multi_index(place, accuracy.shape)) for place in joint]
    row['cross-fitted'] = f'{np.mean([cross_fitted(flat, place) for place in places]):.1f}'
    if options.features > 1:
        views = torch.from_numpy(arrays[f'views_{grid[step]}'])[:, :SET]
        chosen = choose_features(
            dict(zip(taps, views, strict=True)), taps[cell], options.features, options.ridge
        )
        together = probe(arrays, grid[step], [taps.index(tap) for tap in chosen])
        row[f'{options.features} joined'] = f'{100 * together.mean():.1f}'
    return row


def main() -> None:
    """Collect, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('cases', nargs='+', metavar='MODEL_CORRUPTION')
    parser.add_argument('--data-root', type=Path, default=Path('data'))
    parser.add_argument('--out', type=Path, default=Path('work_dirs/place'))
    parser.add_argument(
        '--model', nargs='*', default=[], metavar='NAME=FOLDER', help='read on digits'
    )
    parser.add_argument('--num-train', type=int, default=600)
    parser.add_argument('--num-test', type=int, default=1000)
    parser.add_argument('--num-images', type=int, default=384, help=f'{SET} in each selection')
    parser.add_argument('--ridge', type=float, default=0.02)
    parser.add_argument('--features', type=int, default=1, help='joined, of one pass')
    options = parser.parse_args()
    own = dict(entry.split('=', 1) for entry in options.model)
    models = {**MODELS, **{name: (folder, 'digits') for name, folder in own.items()}}
    table = [rows_of(name, collect(name, models, options), options) for name in options.cases]
    print(markdown_table(table))


if __name__ == '__main__':
    main()
