# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""One timestep's scores: criteria from their configs, a batch with its noise, one step of it."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmaselect.checks import is_meant
from mmaselect.diffusion import FrozenDiT, TapKey, draw_noise, noise_seed
from mmaselect.images.views import NUM_VIEWS, ViewBatch, ViewBoxes
from mmaselect.registry import CRITERIA
from mmaselect.selection.criteria.base import Criterion
from mmaselect.selection.criteria.view_pairs import in_float64
from mmaselect.selection.ranks import gather_answers, rank_and_size

#: A criterion by its name, or by a config with its arguments.
CriterionConfig = str | Mapping[str, Any]
#: ((block, feature), name of a criterion) -> its streaming score, all of one timestep.
Meters = dict[tuple[TapKey, str], Criterion]

#: Noise draws of an image's two views have the numbers from here, those of the image all others.
_FIRST_VIEW_DRAW = 32


def build_criteria(
    configs: Sequence[CriterionConfig], arguments: Sequence[str] | None = None
) -> dict[str, Criterion]:
    """Criteria by the name they carry in results; a second of one type gets a number.

    Args:
        configs: Their names or configs.
        arguments: The argument that each config came from, for the message of an error.

    Raises:
        ValueError: If a criterion is not known, or does not take its arguments.
    """
    criteria: dict[str, Criterion] = {}
    for place, config in enumerate(configs):
        try:
            criterion = build_criterion(config)
        except ValueError as error:
            raise ValueError(f'{arguments[place]}: {error}' if arguments else str(error)) from error
        name = base = type(criterion).__name__
        number = 1
        while name in criteria:
            number += 1
            name = f'{base}-{number}'
        criteria[name] = criterion
    return criteria


def build_criterion(config: CriterionConfig) -> Criterion:
    """A criterion from its name or its config.

    Raises:
        ValueError: If it is not known, or does not take its arguments.
    """
    arguments = dict(type=config) if isinstance(config, str) else dict(config)
    kind = arguments.pop('type', None)
    cls = CRITERIA.get(kind) if isinstance(kind, str) else kind
    if not (isinstance(cls, type) and issubclass(cls, Criterion)):
        raise ValueError(
            f'criterion {kind!r} is not known: choose from '
            f'{", ".join(sorted(CRITERIA.module_dict))}, or register a subclass of Criterion '
            f'with @CRITERIA.register_module(){is_meant(kind, CRITERIA.module_dict)}'
        )
    try:
        return cls(**arguments)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        takes = [name for name in inspect.signature(cls).parameters if name != 'kwargs']
        raise ValueError(
            f'criterion {cls.__name__}: {error}. It takes {", ".join(takes) or "no arguments"}'
        ) from error


@dataclass(frozen=True)
class Reading:
    """What one transformer pass reads: clean latents, and the noise that they keep.

    Attributes:
        latent: (B, C, H, W).
        noise: Standard normal, of the same shape.
    """

    latent: Tensor
    noise: Tensor


@dataclass(frozen=True)
class EncodedBatch:
    """Some images, encoded once; their noise is the same at all timesteps.

    Attributes:
        draws: One reading for each noise draw; all share the latents.
        views: One reading for each random view of the images.
        where: Where the views lie in their images; None without views.
        indices: Position of each image in its set.
        labels: (B,) class labels, or (B, H, W) label maps, where the source has them.
    """

    draws: tuple[Reading, ...]
    indices: list[int]
    labels: Tensor | None = None
    views: tuple[Reading, ...] = ()
    where: ViewBoxes | None = None


def draw_readings(
    latent: Tensor, numbers: Sequence[int], draws: int, seed: int
) -> tuple[Reading, ...]:
    """Readings of the same latents under independent noise draws.

    Args:
        latent: (B, C, H, W).
        numbers: One for each image; its noise depends on it, on the seed and on the latent's shape,
            never on the batch.
        draws: How many.
        seed: Seed of the noise.
    """
    shape = tuple(latent.shape[1:])
    # Draws of the image itself leave out the numbers of its views'.
    places = [d if d < _FIRST_VIEW_DRAW else d + NUM_VIEWS for d in range(draws)]
    return tuple(
        Reading(
            latent,
            draw_noise(shape, [noise_seed(seed, n, place) for n in numbers], latent.device),
        )
        for place in places
    )


def view_readings(
    latents: Tensor, numbers: Sequence[int], seed: int, noise: str
) -> tuple[Reading, ...]:
    """Readings of the views of some images.

    Args:
        latents: (V, B, C, H, W), clean latents of each view.
        numbers: See :func:`draw_readings`.
        seed: Seed of the noise.
        noise: See :class:`~mmaselect.images.views.ViewOptions`.
    """
    readings = []
    for view, latent in enumerate(latents):
        draw = _FIRST_VIEW_DRAW + (view if noise == 'own' else 0)
        seeds = [noise_seed(seed, number, draw) for number in numbers]
        readings.append(Reading(latent, draw_noise(tuple(latent.shape[1:]), seeds, latent.device)))
    return tuple(readings)


def encode_views(dit: FrozenDiT, views: ViewBatch) -> Tensor:
    """Clean latents (V, B, C, H, W) of views, each encoded once."""
    return torch.stack([dit.encode(images.to(dit.device)) for images in views.images.unbind(1)])


def start_meters(
    criteria: Mapping[str, Criterion], taps: Sequence[TapKey], device: torch.device
) -> Meters:
    """Empty scores of one timestep: a copy of every criterion for each (block, feature)."""
    meters = {
        (tap, name): deepcopy(criterion).to(device)
        for tap in taps
        for name, criterion in criteria.items()
    }
    for meter in meters.values():
        # A rank that got no image since the last time must join the others' sum all the same.
        meter.compute_with_cache = False
    return meters


def score_step(
    dit: FrozenDiT,
    batch: EncodedBatch,
    timestep: int,
    meters: Meters,
    taps: Sequence[TapKey] | None = None,
    names: Sequence[str] | None = None,
) -> int:
    """Add a batch to the scores of one timestep: one transformer pass for each reading.

    Args:
        dit: The frozen model.
        batch: Its images, with as many draws as the criteria want.
        timestep: 0 (clean) to T - 1 (noise).
        meters: From :func:`start_meters`; they are updated.
        taps: Some of the model's (block, feature), which alone are read; all if None.
        names: Some of the criteria, which alone are updated; all if None.

    Returns:
        int: Model evaluations: transformer passes of one image each.
    """
    some: dict[str, Any] = {} if taps is None else dict(keys=taps)
    used = {
        (tap, name): meter
        for (tap, name), meter in meters.items()
        if (taps is None or tap in taps) and (names is None or name in names)
    }
    wanted = (
        batch.draws[: max(meter.draws for meter in used.values())],
        batch.views[: max(meter.views for meter in used.values())],
    )
    draws, views = (
        [dit.features(reading.latent, timestep, reading.noise, **some) for reading in readings]
        for readings in wanted
    )
    for (tap, _), meter in used.items():
        extra: dict[str, Any] = {'labels': batch.labels if meter.needs_labels else None}
        if meter.views:
            extra['where'] = batch.where
        maps = views[: meter.views] if meter.views else draws[: meter.draws]
        meter.update(*(drawn[tap] for drawn in maps), **extra)
    return len(batch.indices) * (len(draws) + len(views))


@dataclass(frozen=True)
class StepScores:
    """What the criteria say of one timestep.

    Features that are not finite, be it for one image in one (block, feature), leave the whole
    timestep without scores: a model that overflows there must not be read there, and a mean over
    the images that happened to stay finite is not the same quantity as at other timesteps.

    Attributes:
        timestep: 0 (clean) to T - 1 (noise).
        noise_level: Standard deviation of the noise in the noisy latent.
        log_snr: ``2 ln(alpha / sigma)``; None where it is infinite.
        values: ((block, feature), criterion) to what :meth:`Criterion.compute` gave, as numbers.
        per_image: The same to (N, 2), what each image adds to numerator and denominator, in the
            order in which they were taken; only of criteria that are a ratio of sums over images.
        images: How many it was scored on.
    """

    timestep: int
    noise_level: float
    log_snr: float | None
    values: Mapping[tuple[TapKey, str], Mapping[str, float]]
    per_image: Mapping[tuple[TapKey, str], np.ndarray] = field(default_factory=dict)
    images: int | None = None

    @cached_property
    def taps(self) -> tuple[TapKey, ...]:
        """The (block, feature) that were scored."""
        return tuple(dict.fromkeys(tap for tap, _ in self.values))

    @cached_property
    def is_finite(self) -> bool:
        """Whether all features were."""
        return not any(value['nonfinite'] > 0 for value in self.values.values())

    def value(self, tap: TapKey, criterion: str, name: str) -> float | None:
        """A criterion's ``'score'``, ``'std'`` or ``'sem'`` of one (block, feature).

        None if it is undefined, or if the timestep has features that are not finite.
        """
        return finite_or_none(self.values[tap, criterion][name]) if self.is_finite else None

    def mean(self, taps: Sequence[TapKey], criterion: str, name: str) -> float | None:
        """Mean of :meth:`value` over some (block, feature); None if it is None for any."""
        values = [self.value(tap, criterion, name) for tap in taps]
        defined = [value for value in values if value is not None]
        return sum(defined) / len(values) if len(defined) == len(values) else None


@dataclass(frozen=True)
class Found:
    """What a criterion gave, on the host.

    Attributes:
        values: Numbers by their name.
        per_image: (N, 2), what each image adds, in the order in which they were taken; None where
            the criterion does not say.
    """

    values: Mapping[str, float]
    per_image: np.ndarray | None


def compute_meters(meters: Sequence[Criterion]) -> list[Found]:
    """What criteria give, over all ranks, on all ranks. All ranks call it together.

    Each criterion is computed by one rank; on an accelerator the host fetches all numbers at once.
    """
    rank, world_size = rank_and_size()
    mine: list[dict[str, Tensor]] = []
    error: Exception | None = None
    for start in range(0, len(meters), world_size):
        # As many as there are ranks hold the sums of all ranks at a time: each computes one.
        group = meters[start : start + world_size]
        for meter in group:
            meter.sync(dist_sync_fn=meter.dist_sync_fn)
        if rank < len(group) and error is None:
            try:
                # Without the wrapper of torchmetrics, which would sync again.
                mine.append(inspect.unwrap(group[rank].compute)())
            except Exception as caught:  # the others wait in the next collective
                error = caught
        if world_size > 1:
            for meter in group:
                meter.unsync()

    def fetch(tell: Callable[[str], None]) -> list[Found]:
        if error is not None:
            raise error
        return on_host(mine, world_size)

    shares = gather_answers(fetch)
    return [shares[place % world_size][place // world_size] for place in range(len(meters))]


def on_host(computed: Sequence[Mapping[str, Tensor]], world_size: int) -> list[Found]:
    """Results of criteria, fetched from each device in one copy.

    Args:
        computed: What :meth:`Criterion.compute` gave.
        world_size: Number of ranks.
    """
    tensors = [torch.as_tensor(value) for found in computed for value in found.values()]
    arrays: dict[int, np.ndarray] = {}
    for device in {tensor.device for tensor in tensors}:
        places = [place for place, tensor in enumerate(tensors) if tensor.device == device]
        flat = torch.cat([in_float64(tensors[place]).flatten() for place in places]).cpu()
        parts = flat.split([tensors[place].numel() for place in places])
        arrays |= {
            place: part.reshape(tensors[place].shape).numpy()
            for place, part in zip(places, parts, strict=True)
        }
    ordered = iter(arrays[place] for place in range(len(tensors)))
    results = []
    for found in computed:
        values = dict(zip(found, ordered))  # noqa: B905 (takes as many as there are names)
        rows = values.pop('per_image', None)
        per_image = None if rows is None else in_set_order(rows, world_size)
        results.append(Found({name: float(value) for name, value in values.items()}, per_image))
    return results


def step_scores(
    found: Mapping[tuple[TapKey, str], Found],
    dit: FrozenDiT,
    timestep: int,
    num_tokens: int,
    images: int | None = None,
) -> StepScores:
    """The scores of a timestep.

    Args:
        found: ((block, feature), criterion) to what it gave.
        dit: The frozen model, for the noise level.
        timestep: 0 (clean) to T - 1 (noise).
        num_tokens: Image tokens of one image, which the noise level of some families depends on.
        images: How many it was scored on.
    """
    level = dit.process.at(timestep, num_tokens)
    return StepScores(
        timestep,
        level.sigma,
        finite_or_none(level.log_snr),
        {key: one.values for key, one in found.items()},
        {key: one.per_image for key, one in found.items() if one.per_image is not None},
        images,
    )


def read_meters(meters: Meters, dit: FrozenDiT, timestep: int, num_tokens: int) -> StepScores:
    """The scores of a timestep from the images that have been added, over all ranks.

    Args:
        meters: Meters of the timestep.
        dit: See :func:`step_scores`.
        timestep: See :func:`step_scores`.
        num_tokens: See :func:`step_scores`.
    """
    found = dict(zip(meters, compute_meters(list(meters.values())), strict=True))
    return step_scores(found, dit, timestep, num_tokens)


def in_set_order(rows: np.ndarray, world_size: int) -> np.ndarray:
    """Rows that came rank by rank, as the images were taken, of which rank r has every W-th."""
    order = np.concatenate([np.arange(rank, len(rows), world_size) for rank in range(world_size)])
    placed = np.empty_like(rows)
    placed[order] = rows
    return placed


def finite_or_none(value: float) -> float | None:
    """The number, or None for NaN and infinities, which JSON does not have."""
    return value if math.isfinite(value) else None
