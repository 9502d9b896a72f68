# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""The exhaustive search that A-SelecT replaces: a linear probe at every timestep.

At each timestep every image is passed once, for all blocks and features; test images are seen only
by probes that are fitted.
"""

from __future__ import annotations

import argparse
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from joblib import Parallel, delayed
from torch import Tensor
from torch.nn import functional as F

from mmaselect.analysis.encoded import EncodedImages
from mmaselect.analysis.linear_probe import PROBE_VERSION, LinearProbe, ProbeOptions, fit_probe
from mmaselect.analysis.stats import wilson_interval
from mmaselect.analysis.study import Study
from mmaselect.diffusion import TapKey
from mmaselect.images.labeled import IGNORE_INDEX


class Search(ABC):
    """Measures a timestep by linear probes.

    Args:
        train: Images that probes are fitted on.
        test: Images that they are measured on.
        num_classes: Number of classes.
        options: Options of the probes.
        jobs: Probes fitted at the same time.
    """

    #: Name of what is measured, in percent.
    metric: str

    def __init__(
        self,
        train: EncodedImages,
        test: EncodedImages,
        num_classes: int,
        options: ProbeOptions,
        jobs: int = 1,
    ) -> None:
        self.train = train
        self.test = test
        self.num_classes = num_classes
        self.options = options
        self.jobs = jobs

    def measure(self, timestep: int, taps: Sequence[TapKey] | None = None) -> list[dict[str, Any]]:
        """Probe blocks and features at a timestep.

        Args:
            timestep: 0 (clean) to T - 1 (noise).
            taps: Which (block, feature); all that the model gives if None.

        Returns:
            Rows ``block, feature, value, low, high`` (percent; the ends of a 95 % interval),
            ``strength``, ``holdout_accuracy`` and ``converged`` of the probe.
        """
        probes = self.fit(timestep, taps)
        return [
            dict(
                block=tap[0],
                feature=tap[1],
                value=value,
                low=low,
                high=high,
                strength=probes[tap].strength,
                holdout_accuracy=probes[tap].holdout_accuracy,
                converged=probes[tap].converged,
            )
            for tap, rows in self.test_outcomes(timestep, probes).items()
            for value, low, high in [self.metric_of(rows)]
        ]

    def outcomes(self, timestep: int) -> dict[TapKey, np.ndarray]:
        """Probe all blocks and features at a timestep; what each test image adds to the metric.

        Returns:
            See :meth:`test_outcomes`.
        """
        return self.test_outcomes(timestep, self.fit(timestep))

    def fit(self, timestep: int, taps: Sequence[TapKey] | None = None) -> dict[TapKey, LinearProbe]:
        """Probes by tap, fitted on the training images."""
        samples, labels, groups = self.training_samples(timestep)
        samples = {tap: samples[tap] for tap in taps or samples}
        fitted = Parallel(n_jobs=self.jobs)(
            delayed(fit_probe)(values, labels, self.num_classes, self.options, groups)
            for values in samples.values()
        )
        return dict(zip(samples, fitted, strict=True))

    @property
    def evaluations(self) -> int:
        """Transformer passes of one image each that a timestep takes."""
        return len(self.train) + len(self.test)

    @abstractmethod
    def training_samples(
        self, timestep: int
    ) -> tuple[dict[TapKey, np.ndarray], np.ndarray, np.ndarray | None]:
        """Samples (N, C) by tap, labels (N,), and groups (N,) or None."""

    @abstractmethod
    def test_outcomes(
        self, timestep: int, probes: dict[TapKey, LinearProbe]
    ) -> dict[TapKey, np.ndarray]:
        """What each test image adds to the metric, by tap: rows, in the order of the images."""

    @abstractmethod
    def metric_of(self, outcomes: np.ndarray) -> tuple[float, float, float]:
        """Metric and its interval, in percent, of some images' outcomes."""


class ClassificationSearch(Search):
    """A sample is an image: the mean of its feature map over tokens.

    Measures top-1 accuracy, with Wilson's interval.
    """

    metric = 'accuracy'

    @staticmethod
    def _pooled(images: EncodedImages, timestep: int) -> dict[TapKey, np.ndarray]:
        parts: dict[TapKey, list[Tensor]] = {tap: [] for tap in images.dit.keys}
        for batch in images.features(timestep):
            for tap, maps in batch.draws[0].items():
                parts[tap].append(maps.float().mean((2, 3)).cpu())
        return {tap: torch.cat(part).numpy() for tap, part in parts.items()}

    def training_samples(
        self, timestep: int
    ) -> tuple[dict[TapKey, np.ndarray], np.ndarray, np.ndarray | None]:
        return self._pooled(self.train, timestep), self.train.labels.numpy(), None

    def test_outcomes(
        self, timestep: int, probes: dict[TapKey, LinearProbe]
    ) -> dict[TapKey, np.ndarray]:
        """Whether each image is classified right: (N,), 0 or 1."""
        labels = self.test.labels.numpy()
        pooled = self._pooled(self.test, timestep)
        return {
            tap: (probe.predict(pooled[tap]) == labels).astype(int) for tap, probe in probes.items()
        }

    def metric_of(self, outcomes: np.ndarray) -> tuple[float, float, float]:
        low, high = wilson_interval(int(outcomes.sum()), len(outcomes))
        return 100 * float(outcomes.mean()), 100 * low, 100 * high


class SegmentationSearch(Search):
    """A sample is a pixel: the feature map at its position, interpolated. Measures mean IoU over
    classes, with an interval from resampling the test images (bootstrap).

    A linear layer and bilinear interpolation commute, so this is a linear head whose logits are
    enlarged to the image, as in MMSegmentation.
    """

    metric = 'mIoU'

    def training_samples(
        self, timestep: int
    ) -> tuple[dict[TapKey, np.ndarray], np.ndarray, np.ndarray | None]:
        stride = self.train.dit.stride
        parts: dict[TapKey, list[Tensor]] = {tap: [] for tap in self.train.dit.keys}
        labels, groups = [], []
        for batch in self.train.features(timestep):
            for index, (label_map, position) in enumerate(
                zip(batch.labels, batch.positions, strict=True)
            ):
                rows, columns = self._choose_pixels(label_map, position)
                labels.append(label_map[rows, columns])
                groups += [position] * len(rows)
                for tap, maps in batch.draws[0].items():
                    parts[tap].append(_at_pixels(maps[index], rows, columns, stride).cpu())
        targets = torch.cat(labels).numpy()
        if len(targets) == 0:
            raise ValueError('the training images have no labeled pixel')
        samples = {tap: torch.cat(part).numpy() for tap, part in parts.items()}
        return samples, targets, np.array(groups)

    def _choose_pixels(self, label_map: Tensor, position: int) -> tuple[Tensor, Tensor]:
        """The same pixels of an image at all timesteps."""
        candidates = (label_map != IGNORE_INDEX).nonzero()
        rng = np.random.default_rng([self.options.seed, position])
        chosen = rng.permutation(len(candidates))[: self.options.pixels_per_image]
        rows, columns = candidates[torch.from_numpy(chosen)].unbind(1)
        return rows, columns

    def test_outcomes(
        self, timestep: int, probes: dict[TapKey, LinearProbe]
    ) -> dict[TapKey, np.ndarray]:
        """Pixels of each class in intersection and union: (N, 2, K)."""
        areas: dict[TapKey, list[np.ndarray]] = {tap: [] for tap in probes}
        device, stride = self.test.dit.device, self.test.dit.stride
        layers = {
            tap: [
                torch.from_numpy(value).to(device, torch.float32)
                for value in (probe.weight, probe.bias)
            ]
            for tap, probe in probes.items()
        }
        for batch in self.test.features(timestep):
            truth = batch.labels.to(device)
            for tap, (weight, bias) in layers.items():
                maps = batch.draws[0][tap].float()
                logits = F.conv2d(maps, weight[:, :, None, None])
                size = [side * stride for side in logits.shape[2:]]
                logits = F.interpolate(logits, size=size, mode='bilinear', align_corners=False)
                logits = logits[:, :, : truth.shape[1], : truth.shape[2]]
                # The bias last: interpolating -inf would spread it.
                predicted = (logits + bias[:, None, None]).argmax(1)
                areas[tap].append(class_areas(predicted, truth, self.num_classes))
        return {tap: np.concatenate(part) for tap, part in areas.items()}

    def metric_of(self, outcomes: np.ndarray) -> tuple[float, float, float]:
        return bootstrap_iou(outcomes, self.options.seed)


def _at_pixels(feature: Tensor, rows: Tensor, columns: Tensor, stride: int) -> Tensor:
    """Bilinear interpolation of a map (C, h, w) at the centers of pixels: (P, C), float32."""
    height, width = (side * stride for side in feature.shape[1:])
    x = (2 * columns + 1) / width - 1
    y = (2 * rows + 1) / height - 1
    points = torch.stack([x, y], dim=1).float().to(feature.device)[None, None]
    sampled = F.grid_sample(
        feature.float()[None], points, padding_mode='border', align_corners=False
    )
    return sampled[0, :, 0].T


def class_areas(predicted: Tensor, truth: Tensor, num_classes: int) -> np.ndarray:
    """Pixels of each class in intersection and union, image by image.

    Args:
        predicted: (B, H, W), 0..K-1.
        truth: (B, H, W), 0..K-1, or 255 for pixels that do not count.
        num_classes: K.

    Returns:
        (B, 2, K) int64.
    """
    areas = []
    for guess, label in zip(predicted, truth, strict=True):
        kept = label != IGNORE_INDEX
        guess, label = guess[kept], label[kept]
        common = torch.bincount(label[guess == label], minlength=num_classes)
        either = (
            torch.bincount(guess, minlength=num_classes)
            + torch.bincount(label, minlength=num_classes)
            - common
        )
        areas.append(torch.stack([common, either]))
    return torch.stack(areas).cpu().numpy()


def mean_iou(areas: np.ndarray) -> np.ndarray:
    """Mean over the classes that occur of intersection over union, in percent.

    Args:
        areas: (..., 2, K), summed over images.
    """
    with np.errstate(invalid='ignore', divide='ignore'):
        return 100 * np.nanmean(areas[..., 0, :] / areas[..., 1, :], axis=-1)


def bootstrap_iou(
    areas: np.ndarray, seed: int = 0, resamples: int = 1000
) -> tuple[float, float, float]:
    """Mean IoU over all images, and the 95 % percentile interval over resampled sets of images.

    Args:
        areas: (N, 2, K) of N images.
        seed: Seed of the resampling: the same images for all probes.
        resamples: Number of sets.
    """
    count = len(areas)
    value = float(mean_iou(areas.sum(0)))
    weights = np.random.default_rng(seed).multinomial(count, [1 / count] * count, size=resamples)
    drawn = mean_iou(np.tensordot(weights, areas.astype(np.float64), axes=1))
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return value, float(low), float(high)


#: Task to its search.
SEARCHES: dict[str, type[Search]] = {
    'classification': ClassificationSearch,
    'segmentation': SegmentationSearch,
}


class SearchPlan:
    """The images and options of a search, before anything is encoded.

    Args:
        study: The model and its config.
        num_train: Training images; all of them if None.
        num_test: Images that probes are measured on; all of them if None.
        split: ``'val'`` or ``'test'``.
        options: Options of the probes.
        jobs: Probes fitted at the same time.
    """

    def __init__(
        self,
        study: Study,
        num_train: int | None,
        num_test: int | None,
        split: str,
        options: ProbeOptions,
        jobs: int = 1,
    ) -> None:
        self.study = study
        self.train = study.images('train', num_train)
        self.test = study.images(split, num_test)
        self.split = split
        self.options = options
        self.jobs = jobs

    @classmethod
    def from_args(cls, study: Study, args: argparse.Namespace) -> SearchPlan:
        """From the flags of :func:`~mmaselect.analysis.study.add_probe_arguments`."""
        options = ProbeOptions(seed=args.seed, pixels_per_image=args.pixels_per_image)
        return cls(study, args.num_train, args.num_test, args.split, options, args.jobs)

    def settings(self) -> dict[str, Any]:
        """What the results depend on, next to the model."""
        return dict(
            split=self.split,
            num_train=len(self.train),
            num_test=len(self.test),
            train=self.train.identity(),
            test=self.test.identity(),
            probe=asdict(self.options),
            probe_version=PROBE_VERSION,
        )

    def encode(self) -> tuple[Search, float]:
        """Encode all images; the search, and the seconds that it took."""
        train = self.study.encode(self.train, title='encoding train')
        # Noise of their own: test image 0 must not share it with training image 0.
        test = self.study.encode(self.test, first=len(self.train), title=f'encoding {self.split}')
        search = SEARCHES[self.study.task](
            train.images, test.images, self.study.num_classes, self.options, self.jobs
        )
        return search, train.seconds + test.seconds
