# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""The sweep: every calibration image at every timestep, once, and the timestep that scores best."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from mmengine.dist import get_dist_info
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from mmaselect.diffusion import FrozenDiT, sample_values
from mmaselect.images import CalibrationBatch, CalibrationSet
from mmaselect.images.views import ViewOptions
from mmaselect.selection.conclude import conclude
from mmaselect.selection.defaults import DEFAULT_CRITERION, DEFAULT_OTHERS
from mmaselect.selection.grid import DEFAULT_GRID, parse_timesteps
from mmaselect.selection.options import SelectionOptions
from mmaselect.selection.ranks import from_rank_zero, gather_answers
from mmaselect.selection.result import SELECTION_VERSION, SelectionCache, SelectionResult
from mmaselect.selection.scoring import (
    CriterionConfig,
    EncodedBatch,
    Meters,
    Reading,
    StepScores,
    build_criteria,
    draw_readings,
    encode_views,
    read_meters,
    score_step,
    start_meters,
    view_readings,
)


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
        views: How random views of the images are made, for criteria that compare them; the
            defaults of :class:`~mmaselect.images.views.ViewOptions` if None.
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
        seed: int = SelectionOptions.seed,
        batch_size: int = SelectionOptions.batch_size,
        cache: SelectionCache | None = None,
        views: ViewOptions | None = None,
    ) -> None:
        options = SelectionOptions(
            timesteps=timesteps,
            criterion=criterion,
            others=others,
            seed=seed,
            batch_size=batch_size,
            views=ViewOptions() if views is None else views,
        )
        self.dit = dit
        self.calibration = calibration
        self.timesteps = parse_timesteps(options.timesteps, dit.num_train_timesteps)
        self.configs = [dict(config) for config in (options.criterion, *options.others)]
        self.prototypes = build_criteria(self.configs)
        self.seed = options.seed
        self.batch_size = options.batch_size
        self.cache = cache
        for name, prototype in self.prototypes.items():
            if prototype.needs_labels and not calibration.labels_available:
                raise ValueError(
                    f'{name} needs labels, but the calibration images have none. Use a labeled '
                    f'dataset for calibration, or a label-free criterion'
                )
        self.draws = max(prototype.draws for prototype in self.prototypes.values())
        self.views = None
        if any(prototype.views for prototype in self.prototypes.values()):
            self.views = options.views
            self.calibration = calibration.with_views(self.views)

    @classmethod
    def from_options(
        cls,
        dit: FrozenDiT,
        calibration: CalibrationSet,
        options: SelectionOptions,
        cache: SelectionCache | None = None,
    ) -> Sweep:
        """A sweep as options describe it; the calibration set has its images and size already."""
        return cls(
            dit,
            calibration,
            timesteps=options.timesteps,
            criterion=options.criterion,
            others=options.others,
            seed=options.seed,
            batch_size=options.batch_size,
            cache=cache,
            views=options.views,
        )

    # -- identity ---------------------------------------------------------------------------------
    def settings(self) -> dict[str, Any]:
        """Everything that the result depends on, except the batch size and the number of ranks.

        All ranks call it together: each reads its share of the images.

        Raises:
            ValueError: If a calibration image cannot be read.
        """
        shares = gather_answers(lambda: self.calibration.hashes(*get_dist_info()))
        hashes = {position: found for share in shares for position, found in share.items()}
        return dict(
            selection_version=SELECTION_VERSION,
            weights=weights_fingerprint(self.dit),
            transformer=self.dit.family.transformer_class,
            dtype=str(self.dit.dtype),
            images=self.calibration.fingerprint(hashes),
            num_images=len(self.calibration),
            image_size=self.calibration.image_size,
            timesteps=self.timesteps,
            blocks=list(self.dit.blocks),
            features=list(self.dit.feature_names),
            criteria=self.configs,
            seed=self.seed,
            views=None if self.views is None else asdict(self.views),
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
        rank, world_size = get_dist_info()
        start = time.perf_counter()
        settings = json.loads(json.dumps(self.settings(), default=str))
        key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:32]
        # One rank looks, all follow: a cache folder that only some ranks see must not make them
        # disagree on whether to sweep.
        found = from_rank_zero(self.cache.find(key) if self.cache and rank == 0 else None)
        if found is not None:
            return found

        meters = {
            step: start_meters(self.prototypes, self.dit.keys, self.dit.device)
            for step in self.timesteps
        }
        evaluations = sum(
            gather_answers(lambda: self._score_share(meters, rank, world_size, progress))
        )
        steps = [
            read_meters(at_step, self.dit, step, self._num_tokens())
            for step, at_step in meters.items()
        ]
        result = self._result(steps)
        result.seconds = round(time.perf_counter() - start, 3)
        result.model_evaluations = evaluations
        result.key, result.settings = key, settings
        # Sums are reduced in one order everywhere, yet only rank 0's clock is the clock.
        result = from_rank_zero(result)
        if self.cache and rank == 0:
            self.cache.store(result)
        return result

    def _score_share(
        self, meters: dict[int, Meters], rank: int, world_size: int, progress: bool
    ) -> int:
        """Add this rank's images to the scores of all timesteps; returns the model evaluations."""
        share = len(range(rank, len(self.calibration), world_size))
        evaluations = 0
        with Progress(
            TextColumn('{task.description}'),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn('images x timesteps'),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not (progress and rank == 0),
        ) as bar:
            task = bar.add_task('selecting timestep', total=share * len(self.timesteps))
            for batch in self.calibration.batches(self.batch_size, rank, world_size):
                encoded = self._encode(batch)
                for step, at_step in meters.items():
                    evaluations += score_step(self.dit, encoded, step, at_step)
                    bar.advance(task, len(batch.indices))
        return evaluations

    def _encode(self, batch: CalibrationBatch) -> EncodedBatch:
        """Latents and noise of a batch: of the images if a criterion reads them, of their views."""
        draws: tuple[Reading, ...] = ()
        views: tuple[Reading, ...] = ()
        if self.draws:
            latent = self.dit.encode(batch.images.to(self.dit.device))
            draws = draw_readings(latent, batch.indices, self.draws, self.seed)
        if self.views is not None:
            latents = encode_views(self.dit, batch.views)
            views = view_readings(latents, batch.indices, self.seed, self.views.noise)
        return EncodedBatch(
            draws,
            batch.indices,
            None if batch.labels is None else batch.labels.to(self.dit.device),
            views,
            None if batch.views is None else batch.views.where,
        )

    def _result(self, steps: Sequence[StepScores]) -> SelectionResult:
        """What the scores say, and of what."""
        deciding = next(iter(self.prototypes))
        found = conclude(steps, list(self.prototypes), self.dit.keys, str(self.dit.dtype))
        return SelectionResult(
            timestep=found.curve.timestep,
            noise_level=found.curve.best.noise_level,
            log_snr=found.curve.best.log_snr,
            criterion=deciding,
            feature=','.join(self.dit.feature_names),
            blocks=list(self.dit.blocks),
            num_images=len(self.calibration),
            seconds=0.0,
            model_evaluations=0,
            curve=found.curve,
            others=found.others,
            per_tap=found.per_tap,
            warnings=found.warnings,
            interval=found.interval,
        )

    def _num_tokens(self) -> int:
        """Image tokens of one calibration image."""
        size = self.calibration.image_size
        height, width = (size, size) if isinstance(size, int) else size
        return math.ceil(height / self.dit.stride) * math.ceil(width / self.dit.stride)
