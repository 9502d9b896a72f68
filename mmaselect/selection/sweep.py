# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""The sweep: every calibration image at every timestep, once, and the timestep that scores best."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch.distributed as dist
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

import mmaselect
from mmaselect.diffusion import FrozenDiT, TapKey, draw_noise, sample_values
from mmaselect.registry import CRITERIA
from mmaselect.selection.calibration import CalibrationSet
from mmaselect.selection.criteria.base import Criterion
from mmaselect.selection.defaults import DEFAULT_CRITERION, DEFAULT_OTHERS
from mmaselect.selection.grid import DEFAULT_GRID, parse_timesteps
from mmaselect.selection.result import (
    SELECTION_VERSION,
    Curve,
    CurvePoint,
    SelectionCache,
    SelectionResult,
)

CriterionConfig = Mapping[str, Any]
#: timestep -> ((block, feature), criterion) -> streaming score.
Meters = dict[int, dict[tuple[TapKey, str], Criterion]]

#: Seeds of different images are this far apart, so that draws of one never meet another's.
_SEED_STRIDE = 1_000_003


def _rank_and_world() -> tuple[int, int]:
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def noise_seed(seed: int, image: int, draw: int) -> int:
    """Seed of one noise draw of one calibration image, the same for all timesteps and ranks."""
    return (seed * _SEED_STRIDE + image) * 64 + draw


def weights_fingerprint(dit: FrozenDiT) -> str:
    """Hash of names, shapes and a sample of the values of every frozen tensor.

    A strided sample of 1,024 values a tensor tells any two trainings apart, and does not take the
    seconds that hashing some gigabytes would.
    """
    digest = hashlib.sha256()
    tensors = list(dit.named_parameters()) + list(dit.named_buffers())
    for name, tensor in sorted(tensors, key=lambda item: item[0]):
        digest.update(f'{name}{tuple(tensor.shape)}{tensor.dtype}'.encode())
        digest.update(sample_values(tensor, 1024).numpy().tobytes())
    return digest.hexdigest()


def build_criteria(configs: Sequence[CriterionConfig]) -> dict[str, Criterion]:
    """Criteria by the name they carry in results; a second of one type gets a number."""
    criteria: dict[str, Criterion] = {}
    for config in configs:
        arguments = dict(config)
        kind = arguments.pop('type', None)
        # Not CRITERIA.build: under a toolbox's default scope it would warn that the toolbox has no
        # criteria of its own.
        cls = CRITERIA.get(kind) if isinstance(kind, str) else kind
        if not (isinstance(cls, type) and issubclass(cls, Criterion)):
            CRITERIA.import_from_location()
            raise ValueError(
                f'criterion {kind!r} is not known: choose from '
                f'{", ".join(sorted(CRITERIA.module_dict))}, or register a subclass of Criterion '
                f'with @CRITERIA.register_module()'
            )
        criterion = cls(**arguments)
        name = base = type(criterion).__name__
        number = 1
        while name in criteria:
            number += 1
            name = f'{base}-{number}'
        criteria[name] = criterion
    return criteria


def _number(value: Any) -> float | None:
    value = float(value)
    return value if math.isfinite(value) else None


class Sweep:
    """Scores a timestep grid on calibration images and picks the best timestep.

    One VAE encoding an image; one transformer pass for each image, timestep and noise draw; an
    image keeps its draws for all timesteps. Images are shared among ranks, the sums are reduced,
    and every rank returns the same result.

    Args:
        dit: The frozen model; its blocks and features are all scored, and the deciding curve is
            the mean over them.
        calibration: The images.
        timesteps: See :func:`~mmaselect.selection.grid.parse_timesteps`.
        criterion: Config of the criterion that picks.
        others: Configs of criteria that are scored beside it and never decide.
        seed: Of the noise.
        batch_size: Images per transformer pass.
        cache: Where results are kept; None for no cache.

    Raises:
        ValueError: If the grid is out of range, or a criterion needs labels that the calibration
            set does not have.
    """

    def __init__(
        self,
        dit: FrozenDiT,
        calibration: CalibrationSet,
        timesteps: str | int | Sequence[int] = DEFAULT_GRID,
        criterion: CriterionConfig = DEFAULT_CRITERION,
        others: Sequence[CriterionConfig] = DEFAULT_OTHERS,
        seed: int = 0,
        batch_size: int = 16,
        cache: SelectionCache | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f'batch_size must be at least 1, got {batch_size}')
        self.dit = dit
        self.calibration = calibration
        self.timesteps = parse_timesteps(timesteps, dit.num_train_timesteps)
        self.configs = [dict(criterion), *(dict(other) for other in others)]
        self.prototypes = build_criteria(self.configs)
        self.seed = int(seed)
        self.batch_size = batch_size
        self.cache = cache
        for name, prototype in self.prototypes.items():
            if prototype.needs_labels and not calibration.labels_available:
                raise ValueError(
                    f'{name} needs labels, but the calibration images have none. Use a labelled '
                    f'dataset for calibration, or a label-free criterion'
                )
        self.draws = max(prototype.draws for prototype in self.prototypes.values())

    # -- identity ---------------------------------------------------------------------------------
    def settings(self) -> dict[str, Any]:
        """Everything that the result depends on, except the batch size and the number of ranks."""
        return dict(
            selection_version=SELECTION_VERSION,
            mmaselect=mmaselect.__version__,
            weights=weights_fingerprint(self.dit),
            transformer=self.dit.family.transformer_class,
            dtype=str(self.dit.dtype),
            images=self.calibration.fingerprint(),
            num_images=len(self.calibration),
            image_size=self.calibration.image_size,
            timesteps=self.timesteps,
            blocks=list(self.dit.blocks),
            features=list(self.dit.feature_names),
            criteria=self.configs,
            seed=self.seed,
        )

    # -- running ----------------------------------------------------------------------------------
    def run(self, progress: bool = True) -> SelectionResult:
        """Find the stored result, or sweep.

        Args:
            progress: Draw a progress bar on rank 0.

        Raises:
            ValueError: If a calibration image cannot be read.
            RuntimeError: If no timestep gave finite features.
        """
        rank, world_size = _rank_and_world()
        settings = json.loads(json.dumps(self.settings(), default=str))
        key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:32]
        found = self.cache.find(key) if self.cache and rank == 0 else None
        if world_size > 1:
            # One rank looks, all follow: a cache folder that only some ranks see must not make
            # them disagree on whether to sweep.
            shared = [found]
            dist.broadcast_object_list(shared, src=0)
            found = shared[0]
        if found is not None:
            return found

        start = time.perf_counter()
        meters, evaluations = self._score(rank, world_size, progress)
        result = self._conclude(meters)
        result.seconds = round(time.perf_counter() - start, 3)
        result.model_evaluations = evaluations
        result.key, result.settings = key, settings
        if world_size > 1:
            # Sums are reduced in one order everywhere, yet only rank 0's clock is the clock.
            shared = [result]
            dist.broadcast_object_list(shared, src=0)
            result = shared[0]
        if self.cache and rank == 0:
            self.cache.store(result)
        return result

    def _score(self, rank: int, world_size: int, progress: bool) -> tuple[Meters, int]:
        device = self.dit.device
        meters = {
            step: {
                (tap, name): prototype.clone().to(device)
                for tap in self.dit.keys
                for name, prototype in self.prototypes.items()
            }
            for step in self.timesteps
        }
        share = len(range(rank, len(self.calibration), world_size))
        error: Exception | None = None
        evaluations = 0
        bar = Progress(
            TextColumn('{task.description}'),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn('images x timesteps'),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not (progress and rank == 0),
        )
        try:
            with bar:
                task = bar.add_task('selecting timestep', total=share * len(self.timesteps))
                for batch in self.calibration.batches(self.batch_size, rank, world_size):
                    latent = self.dit.encode(batch.images.to(device))
                    noises = [
                        draw_noise(
                            tuple(latent.shape[1:]),
                            [noise_seed(self.seed, index, draw) for index in batch.indices],
                            device,
                        )
                        for draw in range(self.draws)
                    ]
                    labels = None if batch.labels is None else batch.labels.to(device)
                    for step in self.timesteps:
                        maps = [self.dit.features(latent, step, noise) for noise in noises]
                        evaluations += len(batch.indices) * self.draws
                        for (tap, _), meter in meters[step].items():
                            features = [drawn[tap] for drawn in maps[: meter.draws]]
                            if meter.needs_labels:
                                meter.update(*features, labels=labels)
                            else:
                                meter.update(*features)
                        bar.advance(task, len(batch.indices))
        except Exception as caught:
            if world_size == 1:
                raise
            error = caught
        if world_size > 1:
            # A rank that failed must not leave the others waiting in a collective.
            shares: list[Any] = [None] * world_size
            dist.all_gather_object(shares, (evaluations, None if error is None else repr(error)))
            if error is not None:
                raise error
            failed = [f'rank {i}: {message}' for i, (_, message) in enumerate(shares) if message]
            if failed:
                raise RuntimeError(
                    f'timestep selection failed on another rank: {"; ".join(failed)}'
                )
            evaluations = sum(count for count, _ in shares)
        return meters, evaluations

    def _conclude(self, meters: Meters) -> SelectionResult:
        values = {
            (tap, name, step): meter.compute()
            for step, at_step in meters.items()
            for (tap, name), meter in at_step.items()
        }
        names = list(self.prototypes)
        warnings: list[str] = []
        broken = sorted(
            {step for (_, _, step), value in values.items() if float(value['nonfinite']) > 0}
        )
        if broken:
            warnings.append(
                f'features were not finite (NaN or infinity) in {self.dit.dtype} at timesteps '
                f'{broken}: those timesteps cannot be picked. Use dtype="bf16" or "fp32" if this '
                f'is an overflow'
            )
        if len(broken) == len(self.timesteps):
            raise RuntimeError(
                f'no timestep gave finite features in {self.dit.dtype}: use dtype="bf16" or "fp32"'
            )

        def curve(name: str, taps: Sequence[TapKey]) -> Curve:
            points = []
            for step in self.timesteps:
                level = self.dit.process.at(step, self._num_tokens())
                parts = [values[tap, name, step] for tap in taps]
                finite = step not in broken
                points.append(
                    CurvePoint(
                        timestep=step,
                        noise_level=level.sigma,
                        log_snr=_number(level.log_snr),
                        score=_number(_mean(parts, 'score')) if finite else None,
                        std=_number(_mean(parts, 'std')) if finite else None,
                        # Blocks of one image are not independent: their mean is the careful bound.
                        sem=_number(_mean(parts, 'sem')) if finite else None,
                    )
                )
            scored = [point for point in points if point.score is not None]
            if not scored:
                raise RuntimeError(f'{name} gave no finite score at any of {self.timesteps}')
            best = max(scored, key=lambda point: (point.score, -point.timestep))
            block, feature = taps[0] if len(taps) == 1 else (None, None)
            return Curve(name, best.timestep, tuple(points), block, feature)

        curves = {name: curve(name, self.dit.keys) for name in names}
        main = curves[names[0]]
        warnings += self._doubts(main, {name: curves[name] for name in names[1:]})
        return SelectionResult(
            timestep=main.timestep,
            noise_level=main.best.noise_level,
            log_snr=main.best.log_snr,
            criterion=names[0],
            feature=','.join(self.dit.feature_names),
            blocks=list(self.dit.blocks),
            num_images=len(self.calibration),
            seconds=0.0,
            model_evaluations=0,
            curve=main,
            others={name: curves[name] for name in names[1:]},
            per_tap=[curve(names[0], [tap]) for tap in self.dit.keys],
            warnings=warnings,
        )

    def _num_tokens(self) -> int:
        size = self.calibration.image_size
        height, width = (size, size) if isinstance(size, int) else size
        return math.ceil(height / self.dit.stride) * math.ceil(width / self.dit.stride)

    def _doubts(self, main: Curve, others: Mapping[str, Curve]) -> list[str]:
        """What makes a pick suspect."""
        doubts = []
        scored = [point for point in main.points if point.score is not None]
        if len(scored) > 2 and main.timestep in (scored[0].timestep, scored[-1].timestep):
            end = 'first' if main.timestep == scored[0].timestep else 'last'
            # Nothing lies below 0: to advise a wider grid would be no help.
            reason = (
                'the image with the least noise. A model that was trained briefly can be best '
                'there; of a published one, look at the curve'
                if main.timestep == 0
                else 'the maximum may lie outside of it, or the criterion may be measuring the '
                'noise itself'
            )
            doubts.append(
                f'the pick, timestep {main.timestep}, is the {end} point of the grid: {reason}'
            )
        spread = max(p.score for p in scored) - min(p.score for p in scored)
        error = max((p.sem or 0.0) for p in scored)
        if len(scored) > 1 and spread <= error:
            doubts.append(
                f'the curve is flat: scores differ by {spread:.3g}, their standard error is '
                f'{error:.3g}. Use more calibration images, or another block'
            )
        position = {step: i for i, step in enumerate(self.timesteps)}
        for name, other in others.items():
            if abs(position[other.timestep] - position[main.timestep]) > max(
                1, len(self.timesteps) // 10
            ):
                doubts.append(
                    f'{name} disagrees: it would pick timestep {other.timestep} instead of '
                    f'{main.timestep}'
                )
        return doubts


def _mean(parts: Sequence[Mapping[str, Any]], name: str) -> float:
    return sum(float(part[name]) for part in parts) / len(parts)
