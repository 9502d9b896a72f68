# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Joined features, reduced to the width of one of them by PCA."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.dist import broadcast
from torch import Tensor, nn
from torch.nn import functional as F

from mmaselect.diffusion import FrozenDiT, draw_noise, noise_seed
from mmaselect.diffusion.finite_watch import FiniteWatch
from mmaselect.diffusion.joining import join_maps
from mmaselect.diffusion.map_reader import read_maps
from mmaselect.diffusion.timestep_plan import TimestepPlan
from mmaselect.images import CalibrationSet
from mmaselect.selection.criteria.view_pairs import in_float64

#: Calibration images that it is fitted to, at most: each gives all of its tokens.
MOST_IMAGES = 256


class _NoiseByImage:
    """A draw for each image of a calibration set, whatever the batch."""

    draws = 1

    def __init__(self, seed: int, indices: Sequence[int]) -> None:
        self._seeds = [noise_seed(seed, index, 0) for index in indices]

    def draw(self, latent: Tensor, number: int) -> Tensor:
        return draw_noise(tuple(latent.shape[1:]), self._seeds, latent.device)


class JoinedPCA(nn.Module):
    """The leading principal components of each map's joined channels.

    Each feature is first scaled to one mean variance: that of channels differs by orders of
    magnitude from feature to feature, and the largest feature would take all components.

    It has no parameters. Its two buffers travel in checkpoints, since heads are trained on them.

    Args:
        widths: Channels of each feature of a map; the same in all maps.
        maps: Maps that are reduced.

    Attributes:
        weight (Tensor): (maps, widths[0], sum(widths)), NaN before it is fitted.
        bias (Tensor): (maps, widths[0]).
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, widths: Sequence[int], maps: int) -> None:
        super().__init__()
        self.widths = tuple(widths)
        out = self.widths[0]
        self.register_buffer('weight', torch.full((maps, out, sum(widths)), torch.nan))
        self.register_buffer('bias', torch.full((maps, out), torch.nan))
        self.is_fitted = False

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Reduced maps (B, widths[0], H, W), from joined ones (B, sum(widths), H, W).

        Raises:
            RuntimeError: If it was not fitted.
        """
        if not self.is_fitted:
            raise RuntimeError(
                "this ASelecTDiT has no components yet: fusion='concat:pca' is fitted by "
                'init_weights(), which training calls, or comes with a checkpoint. Load a '
                'checkpoint that was trained with this backbone, or call init_weights()'
            )
        return [
            F.conv2d(one, weight[:, :, None, None], bias)
            for one, weight, bias in zip(maps, self.weight, self.bias, strict=True)
        ]

    @torch.no_grad()
    def fit(
        self,
        dit: FrozenDiT,
        plan: TimestepPlan,
        picked: int,
        calibration: CalibrationSet,
        seed: int,
        batch_size: int,
    ) -> None:
        """Fit to the tokens of calibration images, which every rank reads.

        Args:
            dit: The frozen model, at its place.
            plan: At which timesteps it is read.
            picked: The timestep that stands for ``'auto'`` in the plan.
            calibration: The images; the first of them in its order are taken.
            seed: Seed of the noise.
            batch_size: Images per pass.

        Raises:
            FloatingPointError: If features are not finite.
        """
        order = calibration.order[: min(MOST_IMAGES, len(calibration))]
        moments: list[_Moments] = []
        watch = FiniteWatch()
        for start in range(0, len(order), batch_size):
            batch = calibration.batch(order[start : start + batch_size])
            noise = _NoiseByImage(seed, batch.indices)
            images = batch.images.to(dit.device)
            found = join_maps(read_maps(dit, plan, picked, images, noise, watch), dit.maps)
            moments = moments or [_Moments(one) for one in found]
            for moment, one in zip(moments, found, strict=True):
                moment.add(one)
        for place, moment in enumerate(moments):
            weight, bias = moment.components(self.widths)
            self.weight[place].copy_(weight)
            self.bias[place].copy_(bias)
        # Ranks may round differently, and heads are trained on one projection.
        broadcast(self.weight)
        broadcast(self.bias)
        self.is_fitted = True

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.is_fitted = bool(self.bias.isfinite().all())


class _Moments:
    """Mean and covariance of the channels of maps, over all tokens."""

    def __init__(self, like: Tensor) -> None:
        width = like.shape[1]
        self.count = 0
        self.total = in_float64(like.new_zeros(width))
        self.products = in_float64(like.new_zeros(width, width))

    def add(self, maps: Tensor) -> None:
        rows = in_float64(maps.movedim(1, -1).flatten(0, 2))
        self.count += len(rows)
        self.total += rows.sum(0)
        self.products += rows.mT @ rows

    def components(self, widths: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Rows that give the leading components of a token, and what is added to them."""
        mean = self.total / self.count
        covariance = self.products / self.count - mean[:, None] * mean
        variances = covariance.diagonal().clamp(min=0).split(list(widths))
        scale = torch.cat([one.mean().sqrt().clamp(min=1e-12).expand_as(one) for one in variances])
        _, vectors = torch.linalg.eigh(covariance / scale / scale[:, None])
        weight = vectors.flip(1)[:, : widths[0]].mT / scale
        # A component's sign is arbitrary: that of its largest entry is made positive.
        largest = weight.gather(1, weight.abs().argmax(1, keepdim=True))
        weight = weight * largest.sign()
        return weight, -(weight @ mean)
