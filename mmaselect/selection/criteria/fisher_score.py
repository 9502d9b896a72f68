# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Fisher score: how far apart the classes are, measured by how wide they are. Sees labels."""

import warnings
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.utilities.distributed import gather_all_tensors

from mmaselect.checks import choice
from mmaselect.registry import CRITERIA
from mmaselect.selection.criteria.base import Criterion
from mmaselect.selection.criteria.high_frequency_ratio import REDUCTIONS

#: Scatter below this share of a channel's sum of squares is float32 rounding of the features.
ROUNDING = 1e-12


def scatter(counts: Tensor, sums: Tensor, squares: Tensor) -> tuple[Tensor, Tensor]:
    """Between-class and within-class scatter of each channel, from sums.

    Args:
        counts: (K,), samples of each class.
        sums: (K, C), sum of the samples of each class.
        squares: (C,), sum of squares of all samples.

    Returns:
        The diagonals (C,) of S_b = sum_k n_k (mu_k - mu) (mu_k - mu)^T and
        S_w = sum_k sum_{i in k} (x_i - mu_k) (x_i - mu_k)^T.
    """
    means = sums / counts.clamp(min=1)[:, None]
    mean = sums.sum(0) / counts.sum()
    between = (counts[:, None] * (means - mean).square()).sum(0)
    within = squares - (sums * means).sum(0)
    return between, within.clamp(min=0)


def fisher_score_from_sums(
    counts: Tensor, sums: Tensor, squares: Tensor, reduction: str = 'total'
) -> Tensor:
    """Fisher score from sums over samples: see :func:`fisher_score`.

    Args:
        counts: (K,), samples of each class.
        sums: (K, C), sum of the samples of each class.
        squares: (C,), sum of squares of all samples.
        reduction: See :func:`fisher_score`.

    Returns:
        0-d tensor; nan if fewer than two classes have samples, or if none has two.
    """
    classes = counts.count_nonzero()
    between, within = scatter(counts, sums, squares)
    floor = ROUNDING * squares
    if reduction == 'total':
        between, within, floor = between.sum(), within.sum(), floor.sum()
    score = torch.where(between <= floor, 0.0, between / torch.maximum(within, floor)).mean()
    defined = (classes >= 2) & (counts.sum() > classes)
    return torch.where(defined, score, torch.nan)


def fisher_score(
    samples: Tensor, labels: Tensor, num_classes: int, reduction: str = 'total'
) -> Tensor:
    """Between-class scatter over within-class scatter.

    Per channel it is the F statistic of a one-way analysis of variance times (K - 1) / (N - K), for
    N samples of K classes. Scatter below 1e-12 of a channel's sum of squares counts as rounding: a
    channel that is constant scores 0.

    Args:
        samples: (N, C), any float dtype.
        labels: (N,), integers in [0, num_classes).
        num_classes: K.
        reduction: ``'total'``, trace(S_b) / trace(S_w), or ``'channel_mean'``, the mean over
            channels of their own ratios. Defaults to ``'total'``.

    Returns:
        0-d float64 tensor, 0 or more; nan if fewer than two classes have samples, or if none has
        two.

    Raises:
        ValueError: If a label is out of range, a shape is wrong, or an option has none of its
            values.

    Example:
        >>> import torch
        >>> samples = torch.tensor([[0.0], [2.0], [4.0], [6.0]])
        >>> fisher_score(samples, torch.tensor([0, 0, 1, 1]), num_classes=2).item()
        4.0
    """
    choice('reduction', reduction, REDUCTIONS)
    if samples.ndim != 2 or labels.shape != samples.shape[:1]:
        raise ValueError(
            'fisher_score takes samples (N, C) and labels (N,), but got shapes '
            f'{tuple(samples.shape)} and {tuple(labels.shape)}.'
        )
    labels = integer_labels(labels)
    check_labels(labels, num_classes)
    return fisher_score_from_sums(*class_sums(samples, labels, num_classes), reduction=reduction)


def class_sums(
    samples: Tensor, labels: Tensor, num_classes: int, counted: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Counts (K,), sums (K, C) and overall sums of squares (C,) of samples, in float64.

    Args:
        samples: (N, C), float.
        labels: (N,), in [0, K); of those that are not counted, anything.
        num_classes: K.
        counted: (N,), bool: the others are left out, without the host learning how many there are.
    """
    samples = samples.to(torch.float64)
    weights = samples.new_ones(len(samples))
    if counted is not None:
        weights = counted.to(torch.float64)
        samples = torch.where(counted[:, None], samples, 0.0)
        labels = torch.where(counted, labels, 0)
    counts = samples.new_zeros(num_classes).index_add_(0, labels, weights)
    sums = samples.new_zeros(num_classes, samples.shape[1]).index_add_(0, labels, samples)
    return counts, sums, samples.square().sum(0)


def integer_labels(labels: Tensor) -> Tensor:
    """Labels as int64; a ValueError if they are not integers."""
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f'Labels must be integers, but got {labels.dtype}.')
    return labels.long()


def check_labels(labels: Tensor, num_classes: int) -> None:
    """Raise a ValueError unless integer labels lie in [0, num_classes)."""
    if labels.numel():
        low, high = (value.item() for value in labels.aminmax())
        if low < 0 or high >= num_classes:
            raise ValueError(
                f'Labels must lie in [0, {num_classes - 1}] for num_classes={num_classes}, but got '
                f'values from {low} to {high}. Set num_classes to that of the data set, or remap '
                'the labels.'
            )


@CRITERIA.register_module()
class FisherScore(Criterion):
    """Fisher score of the features' class structure, as a check of criteria that see no labels.

    With a class label per image (B,) an image is one sample: the mean of its feature map over
    tokens. With a label map per image (B, h, w) each token is a sample: the map is resized to the
    token grid (nearest pixel of the token's center), and tokens labeled ``ignore_index`` are left
    out.

    ``count`` is the number of samples. ``std`` and ``sem`` are nan: the score is not a mean over
    images. An image whose feature is not finite is counted in ``nonfinite`` and left out. If fewer
    than two classes have samples, or if none has two, the score is nan and a warning says so.

    Args:
        num_classes: Number of classes, K.
        reduction: See :func:`fisher_score`. Defaults to ``'total'``.
        ignore_index: Value of a label map for "no class". Not looked for in labels of shape (B,).
            Defaults to 255.
        **kwargs: Arguments of :class:`torchmetrics.Metric`.

    Raises:
        ValueError: If an option is out of range; from :meth:`update`, if labels are missing, have
            another shape, or are out of range.

    Example:
        >>> import torch
        >>> criterion = FisherScore(num_classes=2)
        >>> values = torch.tensor([0.0, 2.0, 4.0, 6.0])
        >>> feature = values[:, None, None, None].expand(4, 3, 8, 8)
        >>> criterion.update(feature, labels=torch.tensor([0, 0, 1, 1]))
        >>> criterion.compute()['score'].item()
        4.0
    """

    unit = 'A score is the spread between classes over the spread within them.'

    needs_labels: ClassVar[bool] = True
    # Sums of two instances that have seen different things may differ in width: see __init__.
    full_state_update = True

    counts: Tensor
    sums: Tensor
    squares: Tensor
    nonfinite: Tensor

    def __init__(
        self, num_classes: int, reduction: str = 'total', ignore_index: int = 255, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 2:
            raise ValueError(
                f'num_classes must be an integer of 2 or more, but got {num_classes!r}.'
            )
        choice('reduction', reduction, REDUCTIONS)
        self.num_classes = num_classes
        self.reduction = reduction
        self.ignore_index = ignore_index
        zeros = torch.zeros(num_classes, 1, dtype=torch.float64)
        self.add_state('counts', zeros[:, 0].clone(), dist_reduce_fx='sum')
        # One column of zeros, which adds to any width, until an update tells the channels.
        self.add_state('sums', zeros.clone(), dist_reduce_fx='sum')
        self.add_state('squares', zeros[0].clone(), dist_reduce_fx='sum')
        self.add_state('nonfinite', zeros[0, 0].clone(), dist_reduce_fx='sum')

    def update(self, *features: Tensor, labels: Tensor | None = None) -> None:
        self.check_features(features)
        (feature,) = features
        if labels is None:
            raise ValueError(
                'FisherScore needs labels, but got none. Take calibration images from a labeled '
                'data set, or a criterion that sees no labels, such as HighFrequencyRatio.'
            )
        batch, channels = feature.shape[:2]
        if labels.shape[:1] != (batch,) or labels.ndim not in (1, 3):
            raise ValueError(
                f'FisherScore takes labels of shape ({batch},) or label maps ({batch}, h, w) for '
                f'features of shape {tuple(feature.shape)}, but got {tuple(labels.shape)}.'
            )
        if self.squares.shape[0] not in (1, channels):
            raise ValueError(
                f'FisherScore has seen {self.squares.shape[0]} channels, but got {channels}. Score '
                'each block and feature with a criterion of its own.'
            )
        device = self.counts.device
        labels = integer_labels(labels)
        feature = feature.detach().to(torch.float32)
        # Labels are checked where they are, which is the host.
        if labels.ndim == 1:
            check_labels(labels, self.num_classes)
            samples = feature.mean((2, 3))
            finite = counted = samples.isfinite().all(1).to(device)
        else:
            labels = self._labels_of_tokens(labels, feature.shape[2:])
            known = (labels != self.ignore_index).to(device, non_blocking=True)
            samples = feature.permute(0, 2, 3, 1)
            finite = samples.isfinite().flatten(1).all(1).to(device)
            counted = known & finite[:, None, None]
        counts, sums, squares = class_sums(
            samples.flatten(0, -2).to(device),
            labels.to(device, non_blocking=True).flatten(),
            self.num_classes,
            counted.flatten(),
        )
        self.counts = self.counts + counts
        self.sums = self.sums + sums
        self.squares = self.squares + squares
        self.nonfinite = self.nonfinite + (~finite).sum()

    def compute(self) -> dict[str, Tensor]:
        count = self.counts.sum()
        score = fisher_score_from_sums(self.counts, self.sums, self.squares, self.reduction)
        if count > 0 and score.isnan():
            seen = {k: int(n) for k, n in enumerate(self.counts.tolist()) if n}
            warnings.warn(
                'The Fisher score is undefined: it takes samples of two classes or more, and two '
                f'samples or more of one of them, but the samples of each class were {seen} '
                f'({int(self.nonfinite)} images left out as not finite). Use more calibration '
                'images.',
                stacklevel=2,
            )
        nan = torch.full_like(score, torch.nan)
        return {
            'score': score,
            'std': nan,
            'sem': nan,
            'count': count.long(),
            'nonfinite': self.nonfinite.long(),
        }

    def _labels_of_tokens(self, labels: Tensor, grid: torch.Size) -> Tensor:
        """Label maps (B, h, w) at the centers of the tokens, (B, H, W), checked."""
        if 0 <= self.ignore_index < self.num_classes:
            raise ValueError(
                f'ignore_index={self.ignore_index} is one of the {self.num_classes} classes: set '
                'it to a value that the label maps use for "no class" (-1 if they have none).'
            )
        check_labels(labels[labels != self.ignore_index], self.num_classes)
        # Class indices are exact in float32, the dtype that interpolate takes on every device.
        labels = F.interpolate(labels[:, None].float(), size=tuple(grid), mode='nearest-exact')
        return labels[:, 0].long()

    def _sync_dist(
        self,
        dist_sync_fn: Callable[..., list[Tensor]] = gather_all_tensors,
        process_group: Any = None,
    ) -> None:
        # A rank that got no image does not know the number of channels, but states are stacked.
        group = process_group or self.process_group
        mine = torch.tensor([self.squares.shape[0]], device=self.squares.device)
        channels = max(int(width) for width in dist_sync_fn(mine, group))
        if self.squares.shape[0] != channels:
            self.sums = self.sums.expand(-1, channels).contiguous()
            self.squares = self.squares.expand(channels).contiguous()
        super()._sync_dist(dist_sync_fn, process_group=process_group)
