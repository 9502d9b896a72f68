# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""A benchmark of criteria: many models, data sets and corruptions, and what each pick costs.

A case is a model on (perhaps corrupted) images. At each timestep of the grid, linear probes measure
how good the features of each block are, and every criterion scores them. A criterion is judged by
what its pick loses to the best timestep of the grid: its regret.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from mmengine.config import Config
from mmengine.registry import init_default_scope
from scipy.stats import spearmanr

from mmaselect.analysis.encoded import EncodedImages
from mmaselect.analysis.figures import make_figure, panel_grid, styled
from mmaselect.analysis.linear_probe import PROBE_VERSION, ProbeOptions
from mmaselect.analysis.result_folder import ResultFolder
from mmaselect.analysis.scores import score_timestep
from mmaselect.analysis.search import SEARCHES, mean_iou
from mmaselect.diffusion import FrozenDiT
from mmaselect.images.corruptions import corrupt
from mmaselect.images.labeled import LabeledImages
from mmaselect.images.views import ViewOptions
from mmaselect.launch.config import load_config
from mmaselect.openmmlab.dataset_images import build_dataset
from mmaselect.openmmlab.labeled_images import DatasetLabels
from mmaselect.selection.identity import weights_fingerprint
from mmaselect.selection.scoring import (
    build_criteria,
    finite_or_none,
)
from mmaselect.terminal.progress import progress_bar

TOOLBOXES = {'classification': 'mmpretrain', 'segmentation': 'mmseg'}
PICK_COLORS = ('#1b4f8a', '#c8553d', '#588157', '#8d6a9f')
#: Timesteps that are always picked by a control.
CONSTANTS = (0, 25, 50, 100)
RESAMPLES = 1000
#: How often the test images are split into halves.
SPLITS = 50


@dataclass(frozen=True)
class Case:
    """One row of the benchmark's config.

    Attributes:
        name: Names the case and its folder.
        pretrained: The model.
        task: ``'classification'`` or ``'segmentation'``.
        train: Config of the dataset that probes are fitted on, and criteria are scored on.
        test: Config of the dataset that probes are measured on.
        num_classes: Num classes of the data.
        timesteps: The grid.
        corruption: Name, see :func:`~mmaselect.images.corruptions.corrupt`; None for images as they
            are.
        severity: 1 to 3.
        blocks: Blocks that are read; None for all but the first.
        image_size: See :class:`LabeledImages`; None for the model's own.
        num_train: Images that probes are fitted on.
        num_test: Images that they are measured on.
        num_images: Calibration images; they are not among the training images.
        flip: Whether views may be mirrored.
        seed: Seed of the choice of images, the corruption and the noise.
    """

    name: str
    pretrained: str
    task: str
    train: Mapping[str, Any]
    test: Mapping[str, Any]
    num_classes: int
    timesteps: Sequence[int]
    corruption: str | None = None
    severity: int = 0
    blocks: Sequence[int] | None = None
    image_size: int | tuple[int, int] | None = None
    num_train: int = 1000
    num_test: int = 1000
    num_images: int = 256
    flip: bool = False
    seed: int = 0


@dataclass(frozen=True)
class BlockResult:
    """What was measured of one block in one case.

    Attributes:
        case: Its name.
        block: Its index.
        timesteps: The grid.
        metric: Accuracy or mean IoU at each timestep, in percent.
        draws: (resamples, T), the metric of resampled test images, the same at all timesteps.
        halves: (splits, 2, T), the metric of each half of the test images, split at random.
        scores: Criterion to its score at each timestep.
    """

    case: str
    block: int
    timesteps: list[int]
    metric: np.ndarray
    draws: np.ndarray
    halves: np.ndarray
    scores: dict[str, list[float | None]] = field(default_factory=dict)

    @property
    def best(self) -> int:
        """Position of the best timestep; the smallest of equals."""
        return int(self.metric.argmax())

    def position(self, criterion: str) -> int | None:
        """Position of a criterion's or a control's pick; None if it has none on this grid."""
        if criterion.startswith('always '):
            step = int(criterion.removeprefix('always '))
            return self.timesteps.index(step) if step in self.timesteps else None
        scores = self.scores.get(criterion)
        if scores is None or all(score is None for score in scores):
            return None
        return int(np.argmax([-np.inf if score is None else score for score in scores]))

    def cross_fitted_regret(self, pick: int) -> float:
        """Regret against a best timestep that is found on other images than it is measured on.

        The highest of noisy accuracies is too high: even the right timestep seems to lose to it.
        Here each half of the test images says which timestep is best, and the other half what it is
        and what the pick is. The mean over splits may be below 0.
        """
        chosen = self.halves.argmax(2)[:, ::-1]
        best = np.take_along_axis(self.halves, chosen[..., None], 2)[..., 0]
        return float((best - self.halves[..., pick]).mean())

    def row(self, criterion: str) -> dict[str, Any] | None:
        """What a criterion's pick costs in this block."""
        pick = self.position(criterion)
        if pick is None:
            return None
        difference = self.draws[:, self.best] - self.draws[:, pick]
        median = float(np.median(self.metric))
        gain = float(self.metric[self.best]) - median
        rank = None
        scores = self.scores.get(criterion)
        if scores is not None:
            kept = [i for i, score in enumerate(scores) if score is not None]
            values = [scores[i] for i in kept]
            if len(set(values)) > 1:
                rank = finite_or_none(float(spearmanr(values, self.metric[kept]).statistic))
        return dict(
            case=self.case,
            block=self.block,
            criterion=criterion,
            pick=self.timesteps[pick],
            best=self.timesteps[self.best],
            metric=round(float(self.metric[pick]), 3),
            best_metric=round(float(self.metric[self.best]), 3),
            regret=round(float(self.metric[self.best] - self.metric[pick]), 3),
            cross_fitted=round(self.cross_fitted_regret(pick), 3),
            # A difference that resampled images turn round is within the noise.
            within=bool(np.quantile(difference, 0.025) <= 0),
            rank_correlation=rank,
            gain=round((float(self.metric[pick]) - median) / gain, 4) if gain > 0 else None,
        )


class CorruptedLabels(DatasetLabels):
    """Labeled images of a dataset, corrupted as they are read; the same image always alike."""

    corruption: str | None = None
    severity: int = 0
    seed: int = 0

    def load(self, index: int) -> np.ndarray:
        image = super().load(index)
        if self.corruption is None:
            return image
        return corrupt(image, self.corruption, self.severity, self.seed * 1_000_003 + index)


def load_cases(path: str | Path, options: Mapping[str, Any] | None = None) -> tuple[Config, list]:
    """The cases and criteria of a benchmark's config.

    Raises:
        ValueError: If it holds none, an entry is wrong, or two cases have one name.
    """
    config = load_config(path, None if options is None else dict(options))
    if not config.get('cases') or not config.get('criteria'):
        raise ValueError(f'{str(path)!r} must hold `cases` and `criteria`, each a list of dicts')
    try:
        cases = [Case(**case.to_dict()) for case in config.cases]
    except TypeError as error:
        raise ValueError(f'{str(path)!r}: an entry of `cases` is wrong: {error}') from error
    names = [case.name for case in cases]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f'{str(path)!r}: several cases are called {twice}')
    return config, cases


def _images(case: Case, dataset: Mapping[str, Any], size: Any, number: int, seed: int) -> Any:
    source = CorruptedLabels(build_dataset(dataset), case.task)
    source.corruption, source.severity = case.corruption, case.severity
    # Test images must not have the noise of training images.
    entry = sorted((item for item in dataset.items() if item[0] != 'pipeline'), key=str)
    source.seed = case.seed + zlib.crc32(repr(entry).encode()) % 1000
    return LabeledImages(source, size, number, seed)


def run_case(
    case: Case, criteria: Sequence[Mapping[str, Any]], out: str | Path, device: str = 'cpu'
) -> list[BlockResult]:
    """Measure a case, timestep by timestep; what is in its folder already is not done again.

    Args:
        case: The case.
        criteria: Configs of criteria; an entry ``name`` names one in tables,
            ``tasks`` says for which tasks it is (all by default), and ``views`` holds
            arguments of :class:`~mmaselect.images.views.ViewOptions` for one that compares views.
        out: Folder of the benchmark; the case gets a folder in it.
        device: Where the model runs.
    """
    init_default_scope(TOOLBOXES[case.task])
    criteria = [
        {key: value for key, value in entry.items() if key != 'tasks'}
        for entry in criteria
        if case.task in entry.get('tasks', TOOLBOXES)
    ]
    blocks = case.blocks
    if blocks is None:
        first = FrozenDiT.from_pretrained(case.pretrained)
        blocks = list(range(1, first.family.num_blocks))
    dit = FrozenDiT.from_pretrained(case.pretrained, blocks=list(blocks), feature='query')
    dit = dit.to(device)
    size = case.image_size or dit.native_size
    options = ProbeOptions(seed=case.seed)
    folder = ResultFolder(
        Path(out) / case.name,
        dict(
            case=asdict(case),
            weights=weights_fingerprint(dit),
            criteria=[dict(entry) for entry in criteria],
            probe=PROBE_VERSION,
        ),
    )
    todo = [step for step in case.timesteps if folder.find(step) is None]
    if todo:
        # The training images come first in the seeded order; calibration takes what follows.
        every = _images(case, case.train, size, case.num_train + case.num_images, case.seed)
        test_images = _images(case, case.test, size, case.num_test, case.seed)
        train_images, calibration = split_images(every, case.num_train)
        train = EncodedImages(dit, train_images, 64, case.seed)
        test = EncodedImages(dit, test_images, 64, case.seed, first=len(every))
        search = SEARCHES[case.task](train, test, case.num_classes, options)
        groups = list(group_by_views(criteria, case.flip))
        encoded = []
        for views, _ in groups:
            viewed = calibration if views is None else calibration.with_views(views)
            encoded.append(EncodedImages(dit, viewed, 64, case.seed, first=2 * len(every)))
        with progress_bar('timesteps') as bar:
            task = bar.add_task(case.name, total=len(todo))
            for step in todo:
                scores: dict[str, dict[str, float | None]] = {}
                for (_, configs), images in zip(groups, encoded, strict=True):
                    scores.update(score_criteria(images, step, configs))
                outcomes = search.outcomes(step)
                folder.save(
                    step,
                    dict(
                        timestep=step,
                        scores=scores,
                        outcomes={str(tap[0]): rows.tolist() for tap, rows in outcomes.items()},
                    ),
                )
                bar.advance(task)
    return read_case(case, folder, list(dit.blocks))


def split_images(images: LabeledImages, first: int) -> tuple[LabeledImages, LabeledImages]:
    """Two sets of images without a common one: a seeded choice of ``first``, and the rest."""
    order = np.random.default_rng(len(images)).permutation(len(images.chosen))
    parts = []
    for chosen in (order[:first], order[first:]):
        part = LabeledImages(images.source, images.image_size, 1)
        part.chosen = [images.chosen[i] for i in chosen]
        parts.append(part)
    return parts[0], parts[1]


def group_by_views(
    criteria: Sequence[Mapping[str, Any]], flip: bool
) -> Iterator[tuple[ViewOptions | None, dict[str, dict[str, Any]]]]:
    """Criteria that can share passes: those without views, and those with equal views."""
    groups: dict[ViewOptions | None, dict[str, dict[str, Any]]] = {}
    for entry in criteria:
        config = dict(entry)
        views = config.pop('views', None)
        name = config.pop('name', config['type'])
        key = None if views is None else ViewOptions(**{'flip': flip, **views})
        groups.setdefault(key, {})[name] = config
    yield from groups.items()


def score_criteria(
    images: EncodedImages, timestep: int, configs: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, float | None]]:
    """Scores by criterion and block (as text, for JSON)."""
    built = {name: next(iter(build_criteria([c]).values())) for name, c in configs.items()}
    scores: dict[str, dict[str, float | None]] = {name: {} for name in built}
    for row in score_timestep(images, timestep, built):
        scores[row['criterion']][str(row['block'])] = row['score']
    return scores


def read_case(case: Case, folder: ResultFolder, blocks: Sequence[int]) -> list[BlockResult]:
    """Results of a case by block, with the metric of resampled test images."""
    steps = [folder.load(step) for step in case.timesteps]
    results = []
    for block in blocks:
        outcomes = np.stack([np.array(step['outcomes'][str(block)], float) for step in steps])
        rng = np.random.default_rng(case.seed)
        count = outcomes.shape[1]
        weights = rng.multinomial(count, np.full(count, 1 / count), size=RESAMPLES).astype(float)
        first = np.zeros((SPLITS, count))
        for row in first:
            row[rng.permutation(count)[: count // 2]] = 1
        metric, draws, halves = (
            _weighted_metric(case.task, outcomes, each)
            for each in (np.ones(count), weights, np.stack([first, 1 - first], 1))
        )
        scores = {
            name: [step['scores'][name][str(block)] for step in steps]
            for name in steps[0]['scores']
        }
        results.append(
            BlockResult(case.name, block, list(case.timesteps), metric, draws, halves, scores)
        )
    return results


def _weighted_metric(task: str, outcomes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Accuracy or mean IoU, in percent, of weighted test images.

    Args:
        task: ``'classification'`` or ``'segmentation'``.
        outcomes: (T, N) or (T, N, 2, K), what each image adds at each timestep.
        weights: (..., N), how often each image counts.

    Returns:
        (..., T).
    """
    sums = np.einsum('...n,tnj->...tj', weights, outcomes.reshape(*outcomes.shape[:2], -1))
    if task == 'classification':
        return 100 * sums[..., 0] / weights.sum(-1, keepdims=True)
    return mean_iou(sums.reshape(*sums.shape[:-1], *outcomes.shape[2:]))


def benchmark_rows(results: Sequence[BlockResult]) -> list[dict[str, Any]]:
    """A row for each case, block and criterion or control."""
    names = list(dict.fromkeys(name for result in results for name in result.scores))
    names += [f'always {step}' for step in CONSTANTS]
    rows = [result.row(name) for name in names for result in results]
    return [row for row in rows if row is not None]


def summarize(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for each criterion, the best first.

    Each case counts once, however many blocks it has: blocks of one model on the same images are
    not independent. The 95 % intervals of the mean regrets are from resampling cases.
    """
    table = []
    for name in dict.fromkeys(row['criterion'] for row in rows):
        mine = [row for row in rows if row['criterion'] == name]
        by_case: dict[str, list[tuple[float, float]]] = {}
        for row in mine:
            by_case.setdefault(row['case'], []).append((row['regret'], row['cross_fitted']))
        means = np.array([np.mean(values, axis=0) for values in by_case.values()])
        rng = np.random.default_rng(0)
        resampled = means[rng.integers(0, len(means), (2000, len(means)))].mean(1)
        low, high = np.quantile(resampled, [0.025, 0.975], axis=0)
        ranks = [row['rank_correlation'] for row in mine if row['rank_correlation'] is not None]
        gains = [row['gain'] for row in mine if row['gain'] is not None]
        outside = [row['regret'] for row in mine if not row['within']]
        table.append(
            dict(
                criterion=name,
                cases=len(by_case),
                mean_regret=round(float(means[:, 0].mean()), 2),
                low=round(float(low[0]), 2),
                high=round(float(high[0]), 2),
                cross_fitted=round(float(means[:, 1].mean()), 2),
                cross_fitted_low=round(float(low[1]), 2),
                cross_fitted_high=round(float(high[1]), 2),
                worst_case=round(float(means[:, 0].max()), 2),
                worst_case_cross_fitted=round(float(means[:, 1].max()), 2),
                worst_block=round(max(row['regret'] for row in mine), 2),
                worst_outside=round(max(outside, default=0.0), 2),
                within=f'{sum(row["within"] for row in mine)}/{len(mine)}',
                rank_correlation=round(float(np.mean(ranks)), 3) if ranks else None,
                gain=round(float(np.mean(gains)), 3) if gains else None,
            )
        )
    return sorted(table, key=lambda row: row['mean_regret'])


@styled
def regret_figure(summary: Sequence[Mapping[str, Any]]) -> Figure:
    """A bar for each criterion: its mean regret over cases, with its 95 % interval.

    Args:
        summary: As :func:`summarize` gives it. Controls (``always T``) are gray; a criterion that
            was not scored in all cases says in how many it was.
    """
    height = 0.6 + 0.16 * len(summary)
    figure, axes = make_figure(width=6.5, height=height)
    axis = axes[0, 0]
    cases = max(row['cases'] for row in summary)
    means = np.array([row['mean_regret'] for row in summary])
    # A mean rounds to two digits, as its ends do: never outside of them by more.
    spans = [
        [max(0.0, row['mean_regret'] - row['low']), max(0.0, row['high'] - row['mean_regret'])]
        for row in summary
    ]
    colors = ['0.7' if row['criterion'].startswith('always') else PICK_COLORS[0] for row in summary]
    axis.barh(
        range(len(summary)), means, color=colors, xerr=np.transpose(spans), ecolor='0.2',
        error_kw=dict(linewidth=0.8, capsize=1.5),
    )  # fmt: skip
    names = [
        row['criterion'] + ('' if row['cases'] == cases else f' ({row["cases"]} cases)')
        for row in summary
    ]
    axis.set_yticks(range(len(summary)), names)
    for place, (mean, span) in enumerate(zip(means, spans, strict=True)):
        axis.annotate(
            f'{mean:.2f}', (mean + span[1], place), (3, 0), textcoords='offset points', va='center',
            fontsize=6,
        )  # fmt: skip
    axis.invert_yaxis()
    axis.margins(y=0.01)
    axis.set_xlabel(f'mean regret over {cases} cases (points; 95 % interval)')
    return figure


def benchmark_figure(results: Sequence[BlockResult], criteria: Sequence[str]) -> Figure:
    """A panel for each case: the probe's curve of each block, its best, and the criteria's picks.

    Args:
        results: Results of all cases.
        criteria: Whose picks are marked below the curves.
    """
    cases = list(dict.fromkeys(result.case for result in results))
    rows, columns = panel_grid(len(cases))
    figure, axes = make_figure(rows, columns, width=2.6, height=2.2)
    for axis in axes.flat[len(cases) :]:
        axis.set_visible(False)
    for axis, case in zip(axes.flat, cases, strict=False):
        mine = [result for result in results if result.case == case]
        for number, result in enumerate(mine):
            shade = str(0.65 * (1 - number / max(1, len(mine) - 1)))
            positions = range(len(result.timesteps))
            axis.plot(positions, result.metric, color=shade, linewidth=1)
            axis.plot(result.best, result.metric[result.best], '*', color=shade, markersize=7)
        low = min(float(result.metric.min()) for result in mine)
        span = max(float(result.metric.max()) for result in mine) - low
        for line, (name, color) in enumerate(zip(criteria, PICK_COLORS, strict=False)):
            picks = [result.position(name) for result in mine]
            height = low - span * (0.1 + 0.09 * line)
            axis.plot(
                [pick for pick in picks if pick is not None],
                [height] * sum(pick is not None for pick in picks),
                '|',
                color=color,
                markersize=6,
                markeredgewidth=1.6,
                label=name,
            )
        axis.set_xticks(range(len(mine[0].timesteps)), mine[0].timesteps, fontsize=5)
        axis.tick_params(axis='y', labelsize=5)
        axis.set_title(case, fontsize=7, loc='left')
    figure.supxlabel('timestep', fontsize=8)
    figure.supylabel('accuracy or mIoU of the probe (%)', fontsize=8)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc='outside lower right', ncols=len(labels), fontsize=7)
    return figure
