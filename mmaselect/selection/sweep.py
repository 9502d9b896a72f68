# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""The sweep: every calibration image at every timestep, once, and the timestep that scores best."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mmengine.dist import get_dist_info

from mmaselect.diffusion import FrozenDiT
from mmaselect.images import CalibrationBatch, CalibrationSet
from mmaselect.images.views import ViewOptions
from mmaselect.selection.conclude import conclude
from mmaselect.selection.defaults import DEFAULT_CRITERION, DEFAULT_OTHERS
from mmaselect.selection.grid import DEFAULT_GRID, parse_timesteps
from mmaselect.selection.identity import code_identity, model_identity
from mmaselect.selection.options import SelectionOptions
from mmaselect.selection.partial import Done, PartialSums
from mmaselect.selection.ranks import check_agreement, from_rank_zero, gather_answers
from mmaselect.selection.result import (
    SELECTION_VERSION,
    SelectionCache,
    SelectionResult,
    settings_key,
    warn,
)
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
from mmaselect.utils.progress import progress_bar


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

    Attributes:
        stored_at (Path | None): Where the result of the last run is kept, on rank 0.
        was_stored (bool): Whether the last run found its result there, and computed nothing.

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
        others: CriterionConfig | Sequence[CriterionConfig] = DEFAULT_OTHERS,
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
        self.stored_at: Path | None = None
        self.was_stored = False
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
            RuntimeError: If ranks see different images, models or versions.
        """
        rank, world_size = get_dist_info()
        model = gather_answers(lambda tell: self._model_settings())[rank]
        if world_size > 1:
            check_agreement(gather_answers(lambda tell: self._facts(model)))
        shares = gather_answers(lambda tell: self._hash_share(rank, world_size, tell))
        hashes = {position: found for share in shares for position, found in share.items()}
        settings = dict(
            selection_version=SELECTION_VERSION,
            **model,
            images=self.calibration.fingerprint({p: image for p, (image, _) in hashes.items()}),
            labels=self._labels_fingerprint([hashes[p][1] for p in range(len(hashes))]),
            num_images=len(self.calibration),
            image_size=self.calibration.image_size,
            timesteps=self.timesteps,
            criteria=self.configs,
            seed=self.seed,
            views=None if self.views is None else asdict(self.views),
        )
        return from_rank_zero(json.loads(json.dumps(settings, default=str)))

    def _model_settings(self) -> dict[str, Any]:
        """What the result depends on beside images and options: model, code, versions."""
        code: dict[str, str] = {}
        try:
            for cls in (*map(type, self.prototypes.values()), type(self.dit.family)):
                code.update(code_identity(cls))
        except LookupError as error:
            if self.cache is not None:
                warn(f'{error}: no stored result is looked for, and none is stored')
            self.cache = None
        return dict(model_identity(self.dit, self.timesteps, self._num_tokens()), code=code)

    def _facts(self, model: dict[str, Any]) -> dict[str, Any]:
        """What must be the same on all ranks, by its name in a message."""
        images = self.calibration
        ends = {0, len(images) - 1}
        names = [Path(images.source.name(index)).name for index in images.chosen]
        return {
            'the number of images': len(images.source),
            'the names of the images': hashlib.sha256('\n'.join(names).encode()).hexdigest()[:12],
            'the pixels of the first and the last image': [
                images.hash_image(position)[:12] for position in sorted(ends)
            ],
            'the size of the images': images.image_size,
            'the timestep grid': self.timesteps,
            'the seed': self.seed,
            **{f"the model's {name}": value for name, value in model.items()},
        }

    def _hash_share(
        self, rank: int, world_size: int, tell: Callable[[str], None]
    ) -> dict[int, tuple[str, str]]:
        """Hashes of this rank's images, and of their labels where a criterion reads them."""
        count = len(self.calibration)
        hashes = {}
        for position in range(rank, count, world_size):
            tell(f'reading {self.calibration.source.name(self.calibration.chosen[position])}')
            image = self.calibration.hash_image(position)
            label = ''
            if any(prototype.needs_labels for prototype in self.prototypes.values()):
                values = self.calibration.labels([position])
                label = '' if values is None else _hash(values.numpy().tobytes())
            hashes[position] = (image, label)
        return hashes

    @staticmethod
    def _labels_fingerprint(labels: Sequence[str]) -> str | None:
        return _hash(''.join(labels).encode()) if any(labels) else None

    # -- running ----------------------------------------------------------------------------------
    def run(self, progress: bool = True) -> SelectionResult:
        """Find the stored result, or sweep.

        A sweep that was killed goes on where it was, if it had a cache and ran for long enough.

        Args:
            progress: Draw a progress bar on rank 0.

        Raises:
            ValueError: If a calibration image cannot be read.
            RuntimeError: If no timestep gave finite features, or a rank is lost or sees something
                else than the others.
        """
        rank, world_size = get_dist_info()
        start = time.perf_counter()
        self.stored_at = None
        settings = self.settings()
        key = settings_key(settings)
        # One rank looks, all follow: a cache folder that only some ranks see must not make them
        # disagree on whether to sweep.
        found = gather_answers(
            lambda tell: self.cache.find(key) if self.cache and rank == 0 else None
        )[0]
        self.was_stored = found is not None
        if found is not None:
            self.stored_at = self.cache.path(key) if self.cache else None
            return found

        meters = {
            step: start_meters(self.prototypes, self.dit.keys, self.dit.device)
            for step in self.timesteps
        }
        partial = None
        if self.cache is not None:
            partial = PartialSums(self.cache.folder, key, (self.batch_size, rank, world_size))
        done = Done() if partial is None else partial.load(meters)
        earlier = done.seconds
        shares = gather_answers(
            lambda tell: self._score_share(meters, done, partial, progress, start, tell)
        )
        steps = [
            read_meters(at_step, self.dit, step, self._num_tokens())
            for step, at_step in meters.items()
        ]
        result = self._result(steps)
        result.seconds = round(earlier + time.perf_counter() - start, 3)
        result.model_evaluations = sum(shares)
        result.key, result.settings = key, settings
        # Sums are reduced in one order everywhere, yet only rank 0's clock is the clock.
        result = from_rank_zero(result)
        if self.cache is not None:
            if rank == 0:
                self.stored_at = self.cache.store(result)
            if from_rank_zero(self.stored_at) is not None and partial is not None:
                partial.clear()
        return result

    def _score_share(
        self,
        meters: dict[int, Meters],
        done: Done,
        partial: PartialSums | None,
        progress: bool,
        start: float,
        tell: Callable[[str], None],
    ) -> int:
        """Add this rank's images to the scores of all timesteps; returns the model evaluations."""
        rank, world_size = get_dist_info()
        share = len(range(rank, len(self.calibration), world_size))
        before, earlier = (done.batches, done.steps), done.seconds
        with progress_bar('images x timesteps', disable=not (progress and rank == 0)) as bar:
            task = bar.add_task('selecting timestep', total=share * len(self.timesteps))
            batches = self.calibration.batches(self.batch_size, rank, world_size)
            for number, batch in enumerate(batches):
                encoded = None
                for place, (step, at_step) in enumerate(meters.items()):
                    if (number, place) >= before:
                        tell(f'scoring timestep {step}, images {batch.indices}')
                        encoded = encoded or self._encode(batch)
                        done.evaluations += score_step(self.dit, encoded, step, at_step)
                        last = place + 1 == len(meters)
                        done.batches, done.steps = (number + 1, 0) if last else (number, place + 1)
                        done.seconds = earlier + time.perf_counter() - start
                        if partial is not None:
                            partial.save_if_due(meters, done)
                    bar.advance(task, len(batch.indices))
        return done.evaluations

    def _encode(self, batch: CalibrationBatch) -> EncodedBatch:
        """Latents and noise of a batch: of the images if a criterion reads them, of their views."""
        draws: tuple[Reading, ...] = ()
        views: tuple[Reading, ...] = ()
        if self.draws:
            latent = self.dit.encode(batch.images.to(self.dit.device))
            draws = draw_readings(latent, batch.indices, self.draws, self.seed)
        if self.views is not None:
            assert batch.views is not None  # the calibration set got the same options
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


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
