# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""A linear probe at each timestep of a folder of classes, next to the label-free pick."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.model_selection import train_test_split

from mmaselect.analysis.encoded import EncodedImages
from mmaselect.analysis.figures import METRIC_COLOR, make_figure, save_all
from mmaselect.analysis.linear_probe import ProbeOptions, fit_probe
from mmaselect.analysis.stats import wilson_interval
from mmaselect.diffusion import FrozenDiT, TapKey
from mmaselect.files import write_atomically, write_json
from mmaselect.images.class_folders import ClassFolders, split_folders
from mmaselect.images.labeled import LabeledImages
from mmaselect.report.rendering import figure_uri, render
from mmaselect.selection import SelectionCache, SelectionOptions, SelectionResult, Sweep
from mmaselect.selection.curve_plot import COLORS
from mmaselect.selection.grid import parse_timesteps
from mmaselect.terminal.progress import progress_bar

#: Weaker than those of the criteria study: what is best at 1 may not be at 100.
PROBE = ProbeOptions(strengths=(1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0))
#: Of the line at the label-free pick; no curve has it.
PICK_COLOR = '#8a8f98'
#: Share of the images that are tested on where the folder has no split.
TEST_SHARE = 1 / 3


@dataclass(frozen=True)
class ProbePoint:
    """Accuracy of a linear probe.

    Attributes:
        block: Block that was read.
        feature: Feature that was read.
        timestep: 0 (clean) to T - 1 (noise).
        accuracy: Percent of the test images.
        low: Lower end of its 95 % interval (Wilson).
        high: Upper end of that interval.
        strength: scikit-learn's C, chosen on a part of the training images.
    """

    block: int
    feature: str
    timestep: int
    accuracy: float
    low: float
    high: float
    strength: float


@dataclass(frozen=True)
class FolderProbe:
    """What a probe of a folder found.

    Attributes:
        points: One for each (block, feature) and timestep.
        selection: The label-free selection on the training images.
        classes: Names of the classes.
        num_train: Training images.
        num_test: Test images.
    """

    points: tuple[ProbePoint, ...]
    selection: SelectionResult
    classes: tuple[str, ...]
    num_train: int
    num_test: int

    @property
    def taps(self) -> list[TapKey]:
        """(block, feature) of all points, in their order."""
        return list(dict.fromkeys((point.block, point.feature) for point in self.points))

    def curve(self, tap: TapKey) -> list[ProbePoint]:
        """Points of a (block, feature), by timestep."""
        return [point for point in self.points if (point.block, point.feature) == tap]

    @property
    def best(self) -> ProbePoint:
        """The point with the highest accuracy; the smallest timestep of equals."""
        return max(self.points, key=lambda point: (point.accuracy, -point.timestep))

    def at_pick(self, tap: TapKey) -> ProbePoint:
        """The point of a (block, feature) at the label-free pick, or at its nearest neighbor."""
        pick = self.selection.timestep
        return min(self.curve(tap), key=lambda point: abs(point.timestep - pick))

    def to_dict(self) -> dict[str, Any]:
        """All of it, for ``probe.json``."""
        return dict(
            best=asdict(self.best),
            pick=self.selection.timestep,
            at_pick=[asdict(self.at_pick(tap)) for tap in self.taps],
            points=[asdict(point) for point in self.points],
            classes=list(self.classes),
            num_train=self.num_train,
            num_test=self.num_test,
            selection=self.selection.to_dict(),
        )


def probe_folder(
    dit: FrozenDiT,
    folder: str | Path,
    options: SelectionOptions,
    num_train: int | None = None,
    num_test: int | None = None,
    cache: SelectionCache | None = None,
) -> FolderProbe:
    """Fit a linear probe at each timestep, and select without labels on the same images.

    Args:
        dit: The frozen model; all its blocks and features are probed.
        folder: A sub-folder for each class, or the same below ``train/`` and ``test/``. Without a
            split, a third of the images of each class is tested on.
        options: How the label-free selection runs; its timesteps are those of the probes.
        num_train: Training images at most; all if None.
        num_test: Test images at most; all if None.
        cache: Where selections are kept; None for no cache.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If it does not hold two classes, or too few images of one.
    """
    train, test = _labeled_images(dit, Path(folder), options, num_train, num_test)
    timesteps = parse_timesteps(options.timesteps, dit.num_train_timesteps)
    points = _probe(dit, train, test, timesteps, options)
    selection = Sweep.of_source(dit, _part(train), options, cache).run()
    return FolderProbe(tuple(points), selection, _classes(train), len(train), len(test))


def probe_timesteps(
    dit: FrozenDiT, folder: str | Path, timesteps: Sequence[int], options: SelectionOptions
) -> list[ProbePoint]:
    """Fit a linear probe at some timesteps, and select nothing.

    Args:
        dit: As in :func:`probe_folder`.
        folder: As in :func:`probe_folder`.
        timesteps: Where to probe.
        options: Size of images and batches, and seed.
    """
    train, test = _labeled_images(dit, Path(folder), options, None, None)
    return _probe(dit, train, test, timesteps, options)


def _classes(images: LabeledImages) -> tuple[str, ...]:
    return images.source.classes  # type: ignore[attr-defined]


def _probe(
    dit: FrozenDiT,
    train: LabeledImages,
    test: LabeledImages,
    timesteps: Sequence[int],
    options: SelectionOptions,
) -> list[ProbePoint]:
    points = []
    with progress_bar('steps') as bar:
        task = bar.add_task('encoding', total=len(train) + len(test))
        sets = [
            EncodedImages(
                dit, images, options.batch_size, options.seed, first, lambda n: bar.advance(task, n)
            )
            for first, images in ((0, train), (len(train), test))
        ]
        labels = [encoded.labels.numpy() for encoded in sets]
        task = bar.add_task('probing', total=len(timesteps))
        for timestep in timesteps:
            pooled = [_pooled(encoded, timestep) for encoded in sets]
            for block, feature in dit.keys:
                fitted, held = (features[block, feature] for features in pooled)
                probe = fit_probe(fitted, labels[0], len(_classes(train)), PROBE)
                correct = int((probe.predict(held) == labels[1]).sum())
                low, high = wilson_interval(correct, len(test))
                points.append(
                    ProbePoint(
                        block,
                        feature,
                        timestep,
                        100 * correct / len(test),
                        100 * low,
                        100 * high,
                        probe.strength,
                    )
                )
            bar.advance(task)
    return points


def _part(images: LabeledImages) -> ClassFolders:
    """The chosen images alone, as a source."""
    source = images.source
    assert isinstance(source, ClassFolders)
    part = copy(source)
    part.files = [source.files[index] for index in images.chosen]
    part.labels = [source.labels[index] for index in images.chosen]
    return part


def _labeled_images(
    dit: FrozenDiT,
    folder: Path,
    options: SelectionOptions,
    num_train: int | None,
    num_test: int | None,
) -> tuple[LabeledImages, LabeledImages]:
    size = options.image_size or dit.native_size
    train_folder, test_folder = split_folders(folder)
    train = ClassFolders(train_folder)
    if test_folder is not None:
        test = ClassFolders(test_folder, train.classes)
    else:
        test = copy(train)
        try:
            parts = train_test_split(
                np.arange(len(train)),
                test_size=TEST_SHARE,
                random_state=options.seed,
                stratify=train.labels,
            )
        except ValueError as error:
            raise ValueError(
                f'{str(folder)!r} cannot be split into training and test images ({error}): each '
                f'class needs three images or more'
            ) from error
        files, labels = train.files, train.labels
        for source, chosen in zip((train, test), parts, strict=True):
            source.files = [files[index] for index in sorted(chosen)]
            source.labels = [labels[index] for index in sorted(chosen)]
    return (
        LabeledImages(train, size, num_train, options.seed),
        LabeledImages(test, size, num_test, options.seed),
    )


def _pooled(encoded: EncodedImages, timestep: int) -> dict[TapKey, np.ndarray]:
    """Mean over positions of each map, (N, C) float32."""
    rows: dict[TapKey, list[torch.Tensor]] = {}
    for batch in encoded.features(timestep):
        for tap, maps in batch.draws[0].items():
            rows.setdefault(tap, []).append(maps.float().mean((-2, -1)).cpu())
    return {tap: torch.cat(parts).numpy() for tap, parts in rows.items()}


# -- what is shown --------------------------------------------------------------------------------
def probe_figure(found: FolderProbe) -> Figure:
    """Accuracy over timesteps of each (block, feature), and the label-free pick."""
    figure, axes = make_figure(width=6.5, height=3.2)
    axis = axes.flat[0]
    for number, tap in enumerate(found.taps):
        curve = found.curve(tap)
        steps = [point.timestep for point in curve]
        color = METRIC_COLOR if len(found.taps) == 1 else COLORS[number % len(COLORS)]
        axis.plot(
            steps,
            [point.accuracy for point in curve],
            marker='o',
            color=color,
            label=f'block {tap[0]}, {tap[1]}',
        )
        axis.fill_between(
            steps,
            [point.low for point in curve],
            [point.high for point in curve],
            color=color,
            alpha=0.12,
            lw=0,
        )
    axis.axvline(
        found.selection.timestep,
        color=PICK_COLOR,
        ls='--',
        lw=1,
        label=f'label-free pick, t = {found.selection.timestep}',
    )
    axis.set_xlabel('timestep')
    axis.set_ylabel('accuracy of a linear probe (%)')
    axis.legend()
    return figure


def save_probe(found: FolderProbe, folder: str | Path, model: str) -> list[Path]:
    """Write ``probe.json``, ``probe.png`` and ``probe.html``; return their paths.

    Args:
        found: What was measured.
        folder: Where they go; made if there is none.
        model: Name of the model, for the page.
    """
    folder = Path(folder)
    figure = probe_figure(found)
    page = render(
        'probe.html.j2',
        found=found,
        model=model,
        figure=figure_uri(figure),
        picks=[(tap, found.at_pick(tap), _best_of(found, tap)) for tap in found.taps],
    )
    written = [write_json(folder / 'probe.json', found.to_dict())]
    written += [path for path in save_all(figure, folder / 'probe') if path.suffix == '.png']
    return [*written, write_atomically(folder / 'probe.html', page)]


def _best_of(found: FolderProbe, tap: TapKey) -> ProbePoint:
    return max(found.curve(tap), key=lambda point: (point.accuracy, -point.timestep))


def table_rows(found: FolderProbe) -> Sequence[Mapping[str, Any]]:
    """Rows of a table: (block, feature), best timestep, accuracy there and at the pick."""
    rows = []
    for tap in found.taps:
        best, pick = _best_of(found, tap), found.at_pick(tap)
        rows.append(
            {
                'block': tap[0],
                'feature': tap[1],
                'best t': best.timestep,
                'accuracy': f'{best.accuracy:.1f}',
                'interval (95 %)': f'{best.low:.1f} to {best.high:.1f}',
                'picked t': pick.timestep,
                'accuracy at the pick': f'{pick.accuracy:.1f}',
                'lost': f'{best.accuracy - pick.accuracy:.1f}',
            }
        )
    return rows
