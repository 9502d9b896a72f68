# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Criteria that compare two random views of each image: the two must find each other."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.utilities import dim_zero_cat

from mmaselect.checks import choice
from mmaselect.images.views import NUM_VIEWS, ViewBoxes
from mmaselect.registry import CRITERIA
from mmaselect.selection.criteria.base import Criterion

DENSE_MEASURES = ('sensitivity', 'log_probability')
#: Ridge of :class:`InstanceSensitivity`.
SENSITIVITY_RIDGE = 0.02
#: Rows of the similarity matrix that are held at a time, so that memory grows with N and not N^2.
_CHUNK = 1024


def whiten_pairs(first: Tensor, second: Tensor, ridge: float = 0.1) -> tuple[Tensor, Tensor]:
    """Remove from two sets of descriptors what they share, and give directions alike their say.

    Channels of diffusion transformers differ by orders of magnitude, and most of the variance of a
    pooled feature lies in a few directions; without whitening those alone decide which descriptors
    are alike.

    Where there are more channels than rows, the matrix of the rows' inner products, (2 N, 2 N), is
    inverted in place of the covariance (D, D): x^T (X^T X + r I)^-1 y needs no more.

    Args:
        first: (N, D), float.
        second: (N, D), float; row i belongs to row i of ``first``.
        ridge: Added to the covariance of all 2 N rows, as a multiple of its mean eigenvalue. It
            keeps directions that hold next to nothing from being blown up.

    Returns:
        tuple[Tensor, Tensor]: Two matrices (N, K), float64, on the device of the rows. Row i of the
        first times row j of the second is the cosine of the centered, whitened descriptors. The
        basis is arbitrary: products within one of the two mean nothing.
    """
    rows = in_float64(torch.cat([first, second]))
    rows = rows - rows.mean(0)
    count, width = rows.shape
    is_wide = width > count
    gram = (rows @ rows.mT if is_wide else rows.mT @ rows) / count
    # Both matrices have the same trace.
    mean_eigenvalue = gram.diagonal().sum() / width
    ridged = gram.clone()
    ridged.diagonal().add_(torch.where(mean_eigenvalue > 0, ridge * mean_eigenvalue, 1.0))
    # The ridge makes it positive definite; to check that would be to wait for the accelerator.
    factor = torch.linalg.cholesky_ex(ridged).L
    if not is_wide:
        white = torch.linalg.solve_triangular(factor, rows.mT, upper=False).mT
        one, other = F.normalize(white, dim=1).tensor_split(2)
        return one, other
    products = torch.cholesky_solve(gram, factor)
    lengths = products.diagonal().clamp(min=0).sqrt().clamp(min=1e-12)
    cosines = products / lengths / lengths[:, None]
    half = len(first)
    return cosines[:half, half:], torch.eye(half, dtype=rows.dtype, device=rows.device)


def in_float64(values: Tensor) -> Tensor:
    """Values in float64, on their device unless it has no such numbers."""
    return (values.cpu() if values.device.type == 'mps' else values).double()


def mean_over_directions(
    first: Tensor, second: Tensor, worth: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> Tensor:
    """What each row's match with its partner is worth among all rows of the other set.

    Args:
        first: (N, D).
        second: (N, D).
        worth: Takes inner products (n, N) of some rows with all of the other set, those with their
            partners (n,), and the partners' columns (n,); gives (n,).

    Returns:
        (N,), float64: the mean over both directions.
    """
    matching = (first * second).sum(1)
    terms = torch.zeros(len(first), dtype=torch.float64, device=first.device)
    for ours, others in ((first, second), (second, first)):
        for rows in torch.arange(len(ours), device=first.device).split(_CHUNK):
            terms[rows] += worth(ours[rows] @ others.mT, matching[rows], rows) / 2
    return terms


def retrieval_hits(first: Tensor, second: Tensor) -> Tensor:
    """Whether each row finds its partner among all rows of the other set, by inner product.

    Args:
        first: (N, D).
        second: (N, D).

    Returns:
        (N,), float64: 0, 0.5 or 1, the mean over both directions. A tie with another row is a miss.
    """

    def hit(similar: Tensor, matching: Tensor, partners: Tensor) -> Tensor:
        # Where there is one image only, there is nothing to confuse it with.
        others = similar.scatter(1, partners[:, None], -torch.inf)
        return (matching > others.amax(1)).double()

    return mean_over_directions(first, second, hit)


def standardized_match(first: Tensor, second: Tensor) -> Tensor:
    """How many standard deviations each row's partner lies above the rows of the other set.

    Args:
        first: (N, D).
        second: (N, D).

    Returns:
        (N,), float64: the mean over both directions; 0 where all rows are alike.
    """

    def standardized(similar: Tensor, matching: Tensor, partners: Tensor) -> Tensor:
        std, mean = torch.std_mean(similar, 1, correction=0)
        return torch.where(std > 0, (matching - mean) / std, 0.0)

    return mean_over_directions(first, second, standardized)


def info_nce(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Log-probability of each row's partner in a softmax over the rows of the other set.

    Args:
        first: (N, D), of unit length.
        second: (N, D), of unit length.
        temperature: Divides the inner products.

    Returns:
        (N,), float64, at most 0: the mean over both directions.
    """

    def log_probability(similar: Tensor, matching: Tensor, partners: Tensor) -> Tensor:
        return matching / temperature - (similar / temperature).logsumexp(1)

    return mean_over_directions(first, second, log_probability)


class ViewPairCriterion(Criterion):
    """A criterion that is a mean, over images, of how well two views of an image match.

    A subclass says how views are described (:meth:`describe`) and what a match is worth
    (:meth:`per_pair`). All descriptors are kept until :meth:`compute`, which compares them with one
    another: memory grows with the number of images (2 D numbers for each and each of its points).

    Args:
        ridge: See :func:`whiten_pairs`. Defaults to 0.1.
        **kwargs: Arguments of :class:`torchmetrics.Metric`.

    Raises:
        ValueError: If the ridge is not positive.
    """

    draws: ClassVar[int] = 0
    views: ClassVar[int] = NUM_VIEWS
    race_from: ClassVar[int | None] = 32
    #: Two or three images find each other whatever is read: scores differ by rounding alone.
    fewest_images: ClassVar[int] = 4
    #: Descriptors of one view.
    points: int = 1

    pairs: list[Tensor]
    width: Tensor
    nonfinite: Tensor

    def __init__(self, ridge: float = 0.1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not ridge > 0:
            raise ValueError(f'ridge must be above 0, got {ridge!r}')
        self.ridge = float(ridge)
        # Flat, since a rank without images has to send something of as many dimensions.
        self.add_state('pairs', [], dist_reduce_fx='cat')
        self.add_state('width', torch.zeros((), dtype=torch.long), dist_reduce_fx='max')
        self.add_state('nonfinite', torch.zeros((), dtype=torch.long), dist_reduce_fx='sum')

    def describe(self, first: Tensor, second: Tensor, where: ViewBoxes | None) -> Tensor:
        """Descriptors of both views of each image.

        Args:
            first: (B, C, H, W), feature maps of the first views.
            second: (B, C, H, W), those of the second views.
            where: Where the views lie in their images.

        Returns:
            (B, 2, points, D), float. Here the mean over tokens.
        """
        return torch.stack([first, second], 1).float().mean((3, 4))[:, :, None]

    @abstractmethod
    def per_pair(self, first: Tensor, second: Tensor) -> Tensor:
        """What each pair adds to the mean.

        Args:
            first: (N, K), float64, from :func:`whiten_pairs`.
            second: (N, K), the partners. ``first @ second.T`` holds the cosines of all first views
                with all second ones; only such products mean something.

        Returns:
            (N,), higher is better.
        """

    def update(
        self, *features: Tensor, labels: Tensor | None = None, where: ViewBoxes | None = None
    ) -> None:
        self.check_features(features)
        first, second = features
        described = self.describe(first, second, where).detach()
        # The whole map counts: a place that is not read may be the one that overflowed.
        seen = [*features, described]
        finite = torch.stack([f.flatten(1).isfinite().all(1) for f in seen]).all(0)
        self.nonfinite = self.nonfinite + (~finite).sum()
        self.width = torch.full_like(self.width, described.shape[-1])
        # Rows that are not finite stay in their place as NaN: compute() leaves them out, and knows
        # which images they were.
        described = torch.where(finite[:, None, None, None], described, torch.nan)
        self.pairs.append(described.flatten())

    def compute(self) -> dict[str, Tensor]:
        values = self.image_values()
        kept = values.isfinite()
        count = kept.sum()
        mean = torch.where(kept, values, 0.0).sum() / count  # NaN of no image
        squares = torch.where(kept, values - mean, 0.0).square().sum()
        std = torch.where(count > 1, (squares / (count - 1)).sqrt(), torch.nan)
        return {
            'score': mean,
            'std': std,
            'sem': std / count.sqrt(),
            'count': count,
            'nonfinite': self.nonfinite,
            'per_image': torch.stack([values, torch.ones_like(values)], 1),
        }

    def descriptors(self, width: int) -> Tensor:
        """Descriptors of all images, in the order of the updates.

        Args:
            width: Numbers of a descriptor, D.

        Returns:
            (N, 2, points, D): NaN for those that were not finite.
        """
        # After a reduction over ranks the list is one tensor already.
        return dim_zero_cat(self.pairs).reshape(-1, NUM_VIEWS, self.points, width)

    def image_values(self) -> Tensor:
        """What each image adds, in the order of the updates: (N,), NaN for those left out.

        On the device of the descriptors, for which the host waits once.
        """
        if not len(self.pairs) or not dim_zero_cat(self.pairs).numel():
            return torch.zeros(0, dtype=torch.float64, device=self.nonfinite.device)
        width, lost = torch.stack([self.width, self.nonfinite]).tolist()
        described = self.descriptors(width)
        # In an order that depends on the descriptors alone: the same sums whatever the batches and
        # the ranks. NaN, those left out, come last.
        order = in_float64(described).sum((1, 2, 3)).argsort(stable=True)
        index = order[: len(order) - lost]
        values = in_float64(described.new_full((len(described),), torch.nan))
        if not len(index):
            return values
        first, second = described[index].unbind(1)
        pairs = whiten_pairs(first.flatten(0, 1), second.flatten(0, 1), self.ridge)
        values[index] = self.per_pair(*pairs).reshape(-1, self.points).mean(1)
        return values


@CRITERIA.register_module()
class InstanceRetrieval(ViewPairCriterion):
    """Share of images whose other view is their nearest neighbor (instance retrieval).

    Two random crops of each image, each with its own noise draw, are described by the mean of
    their feature map over tokens, whitened over all images, and compared by cosine similarity.
    Noise does not help; if the views were made from disjoint pixels not even noise that is in the
    image itself; what the image shows is.
    Follows the tasks of instance discrimination (Wu et al., arXiv 1805.01978) without training.

    Args:
        ridge: See :func:`whiten_pairs`. Defaults to 0.1.
        **kwargs: Arguments of :class:`torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> image = torch.randn(64, 8, 1, 1)
        >>> criterion = InstanceRetrieval()
        >>> criterion.update(image.expand(-1, -1, 4, 4), image.expand(-1, -1, 4, 4))
        >>> criterion.compute()['score'].item()
        1.0
    """

    def per_pair(self, first: Tensor, second: Tensor) -> Tensor:
        return retrieval_hits(first, second)


@CRITERIA.register_module()
class ViewAlignment(ViewPairCriterion):
    """Mean cosine similarity of an image's two views, whitened over all images (alignment).

    The first of the two properties that Wang and Isola (arXiv 2005.10242) find in good
    representations; whitening stands in for the second, uniformity. Smoother over timesteps than
    :class:`InstanceRetrieval`.

    Args:
        ridge: See :func:`whiten_pairs`. Defaults to 0.1.
        **kwargs: Arguments of :class:`torchmetrics.Metric`.
    """

    def per_pair(self, first: Tensor, second: Tensor) -> Tensor:
        return (first * second).sum(1)


@CRITERIA.register_module()
class InstanceSensitivity(ViewPairCriterion):
    """How far an image's other view stands out among the views of all images (sensitivity d').

    The cosine similarity to the image's own other view, minus the mean over the views of all
    images, over the standard deviation there: the sensitivity index of signal detection theory
    (Green and Swets, 1966) of telling same from different. Smooth, as :class:`ViewAlignment`, and
    relative to how alike different images look at this timestep, as :class:`InstanceRetrieval`.

    Args:
        ridge: See :func:`whiten_pairs`. Defaults to 0.02: timesteps are told apart as well as at
            0.1, and blocks and features better (docs/criteria.md).
        **kwargs: Arguments of :class:`torchmetrics.Metric`.
    """

    unit = (
        'A score of 1 says that two views of one image are more alike than views of different '
        'images by one standard deviation.'
    )

    def __init__(self, ridge: float = SENSITIVITY_RIDGE, **kwargs: Any) -> None:
        super().__init__(ridge, **kwargs)

    def per_pair(self, first: Tensor, second: Tensor) -> Tensor:
        return standardized_match(first, second)


@CRITERIA.register_module()
class InstanceDiscrimination(ViewPairCriterion):
    """Mean log-probability of an image's other view among those of all images (InfoNCE).

    As :class:`InstanceRetrieval`, with a softmax in place of the nearest neighbor (van den Oord et
    al., arXiv 1807.03748): a near miss counts for something, so the curve over timesteps is
    smoother and fewer images do.

    Args:
        temperature: Temperature of the softmax over cosine similarities. Defaults to 0.1.
        ridge: See :func:`whiten_pairs`. Defaults to 0.1.
        **kwargs: Arguments of :class:`torchmetrics.Metric`.

    Raises:
        ValueError: If the temperature is not positive.
    """

    def __init__(self, temperature: float = 0.1, ridge: float = 0.1, **kwargs: Any) -> None:
        super().__init__(ridge, **kwargs)
        if not temperature > 0:
            raise ValueError(f'temperature must be above 0, got {temperature!r}')
        self.temperature = float(temperature)

    def per_pair(self, first: Tensor, second: Tensor) -> Tensor:
        return info_nce(first, second, self.temperature)


def overlap_points(where: ViewBoxes, points: int) -> Tensor:
    """A grid of points of the part that both views of each image show, as each view sees them.

    Args:
        where: Where the views lie, (B, 2, 4).
        points: Points along each side of the grid.

    Returns:
        (B, 2, points * points, 2): x and y in each view, -1 to 1, as ``grid_sample`` wants them
        with ``align_corners=False``.

    Raises:
        ValueError: If two views have nothing in common.
    """
    boxes = where.boxes.float()
    low = boxes[:, :, :2].amax(1)
    high = boxes[:, :, 2:].amin(1)
    if bool((high <= low).any()):
        raise ValueError(
            'two views of an image have no part in common: crops must be more than half as wide '
            'and as high as the image (views.scale)'
        )
    steps = (torch.arange(points, device=boxes.device) + 0.5) / points
    y = low[:, :1] + steps * (high - low)[:, :1]
    x = low[:, 1:] + steps * (high - low)[:, 1:]
    # (B, points * points, 2): x and y in the image.
    grid = torch.stack(
        [x[:, None, :].expand(-1, points, -1), y[:, :, None].expand(-1, -1, points)], -1
    ).flatten(1, 2)
    corner = boxes[:, :, None, [1, 0]]
    extent = boxes[:, :, None, [3, 2]] - corner
    seen = (grid[:, None] - corner) / extent * 2 - 1
    mirror = torch.where(where.flipped[:, :, None].to(seen.device), -1.0, 1.0)
    return torch.stack([seen[..., 0] * mirror, seen[..., 1]], -1)


@CRITERIA.register_module()
class DenseCorrespondence(ViewPairCriterion):
    """Whether places that two crops of an image share find each other (dense correspondence).

    The dense form of :class:`InstanceDiscrimination`: the crops are known, so the same place is
    read in both feature maps (bilinear), and must be told from all other places of all images. For
    tasks that read each token, such as segmentation.

    Args:
        points: Places along each side of a grid over the common part. Defaults to 3.
        measure: What a match is worth: ``'sensitivity'``, as :class:`InstanceSensitivity`, or
            ``'log_probability'``, as :class:`InstanceDiscrimination`. Defaults to
            ``'sensitivity'``.
        temperature: Temperature of the softmax, for ``'log_probability'``. Defaults to 0.1.
        ridge: See :func:`whiten_pairs`. Defaults to 0.1.
        **kwargs: Arguments of :class:`torchmetrics.Metric`.

    Raises:
        ValueError: If a value is not positive, or ``measure`` is not one of these.
    """

    def __init__(
        self,
        points: int = 3,
        measure: str = 'sensitivity',
        temperature: float = 0.1,
        ridge: float = 0.1,
        **kwargs: Any,
    ) -> None:
        super().__init__(ridge, **kwargs)
        choice('measure', measure, DENSE_MEASURES)
        self.measure = measure
        if isinstance(points, bool) or not isinstance(points, int) or points < 1:
            raise ValueError(f'points must be a whole number above 0, got {points!r}')
        if not temperature > 0:
            raise ValueError(f'temperature must be above 0, got {temperature!r}')
        self.grid_points = points
        self.points = points * points
        self.temperature = float(temperature)

    def describe(self, first: Tensor, second: Tensor, where: ViewBoxes | None) -> Tensor:
        if where is None:
            raise ValueError('DenseCorrespondence needs to know where views lie in their images')
        # The boxes are checked where they are, which is the host.
        places = overlap_points(where, self.grid_points).to(first.device, non_blocking=True)
        sampled = [
            F.grid_sample(
                feature.float(), places[:, i, None], padding_mode='border', align_corners=False
            )[:, :, 0].mT
            for i, feature in enumerate((first, second))
        ]
        return torch.stack(sampled, 1)

    def per_pair(self, first: Tensor, second: Tensor) -> Tensor:
        if self.measure == 'sensitivity':
            return standardized_match(first, second)
        return info_nce(first, second, self.temperature)
