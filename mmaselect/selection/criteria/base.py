# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""What a criterion is: a streaming score of feature maps, summed over batches and ranks."""

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


class Criterion(Metric):
    """Scores a timestep from the feature maps that the frozen model gives at it. Higher is better.

    One instance belongs to one timestep (and one block and feature): :meth:`update` sees the
    images batch by batch, :meth:`compute` gives the score over all of them, on all ranks.

    Every state is reduced by torchmetrics (sums in float64, or rows that are concatenated), so that
    neither the split into batches nor the number of ranks changes the score. Scores stay on the
    device of the states: move the criterion with ``.to(device)`` to have updates without a
    device-to-host copy.

    Attributes:
        draws: Noise draws of each image that :meth:`update` wants, one feature map for each.
        views: Random views of each image that :meth:`update` wants in place of draws of the image
            itself, each with its own noise; 0 or 2. It then also takes ``where``, the
            :class:`~mmaselect.images.views.ViewBoxes` of the batch.
        needs_labels: Whether :meth:`update` wants the images' labels.
        race_from: Images after which a race may drop timesteps by this criterion: see
            :mod:`mmaselect.selection.race`. It takes ``per_image`` of :meth:`compute`. None where
            that is missing or fewer images say nothing: all timesteps then see all images. A pick
            on fewer images carries a warning.
        fewest_images: Images that differ, below which a sweep is refused.
        unit: What a score counts, as a sentence for pages; empty where the class does not say.
    """

    draws: ClassVar[int] = 1
    views: ClassVar[int] = 0
    needs_labels: ClassVar[bool] = False
    race_from: ClassVar[int | None] = None
    fewest_images: ClassVar[int] = 2
    unit: ClassVar[str] = ''

    higher_is_better = True
    is_differentiable = False
    full_state_update = False

    @abstractmethod
    def update(self, *features: Tensor, labels: Tensor | None = None) -> None:
        """Add a batch of images.

        Args:
            *features: As many feature maps (B, C, H, W) of the same images as ``draws`` says, each
                from an independent noise draw. Any float dtype.
            labels: The images' labels; ignored unless ``needs_labels``.
        """

    @abstractmethod
    def compute(self) -> dict[str, Tensor]:
        """Score of everything added so far, over all ranks.

        Returns:
            0-d tensors: ``score``; ``std``, its standard deviation over images; ``sem``, the
            standard error of ``score``; ``count``, the number of images scored; ``nonfinite``, the
            number of images left out because their feature was not finite. What is undefined is
            nan. And, where the score is a ratio of sums over images, ``per_image`` (N, 2): what
            each image adds to its numerator and to its denominator, in the order of the updates.
        """

    def check_features(self, features: tuple[Tensor, ...]) -> None:
        """Raise on feature maps that :meth:`update` cannot take.

        Raises:
            TypeError: If a feature is not a float tensor.
            ValueError: If their number is not ``draws``, or their shapes are wrong or differ.
        """
        name = type(self).__name__
        wanted = self.views or self.draws
        if len(features) != wanted:
            raise ValueError(
                f'{name} takes {wanted} feature map(s) of each image, one per '
                f'{"view" if self.views else "noise draw"}, but got {len(features)}.'
            )
        for feature in features:
            if not (isinstance(feature, Tensor) and feature.is_floating_point()):
                got = getattr(feature, 'dtype', type(feature).__name__)
                raise TypeError(f'{name} takes float feature maps (B, C, H, W), but got {got}.')
            if feature.ndim != 4:
                raise ValueError(
                    f'{name} takes feature maps (B, C, H, W), but got shape '
                    f'{tuple(feature.shape)}. Reshape tokens (B, N, C) to their grid first.'
                )
            if feature.shape != features[0].shape:
                raise ValueError(
                    f'{name} takes draws of the same images, but got shapes '
                    f'{[tuple(f.shape) for f in features]}.'
                )


class PerImageCriterion(Criterion):
    """A criterion made of one number, or one numerator and one denominator, per image.

    A subclass writes :meth:`per_image` and nothing else. The score is the ratio of the sums over
    images, R = sum(n) / sum(d). With d = 1 (what a subclass gets that returns one number) this is
    the plain mean. The standard error follows the delta method (Cochran, "Sampling Techniques",
    1977, chapter 6): the residuals n - R d have the variance s^2, and sem(R) = s / (mean(d)
    sqrt(N)); with d = 1 it is the standard error of the mean. ``std`` is sem(R) sqrt(N).

    An image whose number is not finite is counted in ``nonfinite`` and left out of the sums.
    If the denominators do not sum to a positive number, no image holds anything to take a share of:
    ``score`` is 0, ``std`` and ``sem`` are nan.

    Example:
        >>> import torch
        >>> class Energy(PerImageCriterion):
        ...     def per_image(self, feature):
        ...         return feature.square().mean((1, 2, 3))
        >>> energy = Energy()
        >>> energy.update(torch.ones(2, 4, 8, 8))
        >>> energy.update(3 * torch.ones(2, 4, 8, 8))
        >>> result = energy.compute()
        >>> result['score'].item(), result['count'].item()
        (5.0, 4)
    """

    race_from: ClassVar[int | None] = 16

    moments: Tensor
    terms: list[Tensor]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # Sums over images of all products of the row (counted, numerator, denominator, left out):
        # everything that compute() needs, in one tensor, hence in one message between ranks.
        self.add_state('moments', torch.zeros(4, 4, dtype=torch.float64), dist_reduce_fx='sum')
        # Two numbers an image, for intervals from resampled images.
        self.add_state('terms', [], dist_reduce_fx='cat')

    @abstractmethod
    def per_image(self, *features: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """What each image adds.

        Args:
            *features: Feature maps (B, C, H, W), as many as ``draws``.

        Returns:
            A score (B,), or a numerator (B,) and a denominator (B,). Not finite where the feature
            is not.
        """

    def update(self, *features: Tensor, labels: Tensor | None = None) -> None:
        self.check_features(features)
        terms = self.per_image(*features)
        numerator, denominator = terms if isinstance(terms, tuple) else (terms, None)
        if numerator.shape != features[0].shape[:1]:
            raise ValueError(
                f'{type(self).__name__}.per_image must give one number per image, shape '
                f'{tuple(features[0].shape[:1])}, but gave shape {tuple(numerator.shape)}.'
            )
        # First the device, then the dtype: some accelerators have no float64.
        device = self.moments.device
        numerator = numerator.detach().to(device).to(torch.float64)
        if denominator is None:
            denominator = torch.ones_like(numerator)
        else:
            denominator = denominator.detach().to(device).to(torch.float64)
        finite = numerator.isfinite() & denominator.isfinite()
        rows = torch.stack(
            [
                finite.to(torch.float64),
                torch.where(finite, numerator, 0.0),
                torch.where(finite, denominator, 0.0),
                (~finite).to(torch.float64),
            ]
        )
        # float32: what torchmetrics sends for a rank without images.
        self.terms.append(torch.stack([numerator, denominator], 1).float().flatten())
        # Not in place: a state reset under inference_mode must stay usable outside of it.
        self.moments = self.moments + rows @ rows.T

    def compute(self) -> dict[str, Tensor]:
        moments = self.moments
        count, nonfinite = moments[0, 0], moments[3, 3]
        numerator, denominator = moments[0, 1], moments[0, 2]
        share = denominator > 0
        ratio = torch.where(share, numerator / denominator, 0.0)
        residual = moments[1, 1] - 2 * ratio * moments[1, 2] + ratio**2 * moments[2, 2]
        nan = torch.full_like(ratio, torch.nan)
        std = (residual.clamp(min=0) / (count - 1)).sqrt() * count / denominator
        std = torch.where(share & (count > 1), std, nan)
        return {
            'score': torch.where(count > 0, ratio, nan),
            'std': std,
            'sem': std / count.sqrt(),
            'count': count.long(),
            'nonfinite': nonfinite.long(),
            'per_image': self._rows(),
        }

    def _rows(self) -> Tensor:
        # After a reduction over ranks the list is one tensor already.
        if not len(self.terms):
            return torch.zeros(0, 2, device=self.moments.device)
        return dim_zero_cat(self.terms).reshape(-1, 2)
