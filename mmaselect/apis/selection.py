# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Timestep selection in one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mmaselect.apis.features import pick_device
from mmaselect.apis.reader import Calibration, calibration_source
from mmaselect.checks import check_path, flag
from mmaselect.diffusion import FrozenDiT, ModelSource
from mmaselect.images.thumbnails import try_thumbnails
from mmaselect.images.views import ViewOptions
from mmaselect.report import save_report
from mmaselect.selection import (
    DEFAULT_CRITERION,
    DEFAULT_GRID,
    DEFAULT_NUM_IMAGES,
    DEFAULT_OTHERS,
    SelectionCache,
    SelectionOptions,
    SelectionResult,
    Sweep,
)


def select_timestep(
    model: str | Path | Mapping[str, Any] | ModelSource | FrozenDiT,
    images: Calibration,
    *,
    labels: Sequence[int] | None = None,
    blocks: Sequence[int] | int | None = None,
    feature: str | Sequence[str] = 'query',
    timesteps: str | int | Sequence[int] = DEFAULT_GRID,
    criterion: str | Mapping[str, Any] = DEFAULT_CRITERION,
    others: str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]] = DEFAULT_OTHERS,
    num_images: int = DEFAULT_NUM_IMAGES,
    image_size: int | tuple[int, int] | None = None,
    batch_size: int = SelectionOptions.batch_size,
    seed: int = SelectionOptions.seed,
    views: ViewOptions | Mapping[str, Any] | None = None,
    method: str = SelectionOptions.method,
    confidence: float = SelectionOptions.confidence,
    refine: int | None = SelectionOptions.refine,
    dtype: str | torch.dtype = 'fp32',
    device: str | torch.device | None = None,
    out: str | Path | None = None,
    cache: bool = True,
    progress: bool = True,
    **model_kwargs: Any,
) -> SelectionResult:
    """Pick the timestep at which a diffusion transformer's features are best, without labels.

    Args:
        model: Hub id, local pipeline folder, ``mmaselect://NAME``, a
            :class:`~mmaselect.diffusion.ModelSource` or a dict of its fields, or a loaded model
            (then ``blocks``, ``feature``, ``dtype`` and ``model_kwargs`` are not used).
        images: A folder of images or a list of folders, a list of images (paths of files, arrays,
            PIL images, ... as :class:`~mmaselect.FeatureExtractor` takes them), or a registered
            dataset's config.
        labels: One class label per image of a list, for label-aware criteria.
        blocks: Blocks to score; the family's default if None.
        feature: One or more of ``'query'``, ``'key'``, ``'value'``, ``'attention'``, ``'output'``.
        timesteps: ``'START:STOP:STEP'`` or a list.
        criterion: A registered criterion's name, or its config.
        others: Names or configs of criteria to score beside it; one or several.
        num_images: Calibration images to use.
        image_size: Side, in pixels, that images are scaled and cropped to; the model's own if None.
        batch_size: Images per pass.
        seed: Of the choice of images, of their views and of the noise.
        views: How random views of the images are made, for criteria that compare them: see
            :class:`~mmaselect.images.views.ViewOptions`.
        method: ``'race'``, which drops timesteps that cannot be the best any more, or ``'full'``,
            which scores all of them on all images.
        confidence: Of the race: that a timestep which is dropped is worse than the leader.
        refine: Spacing of a finer grid around the timesteps that may be the best, which is searched
            at the end; None for the grid alone.
        dtype: Of the frozen weights, or ``'auto'``, as in :meth:`FrozenDiT.from_pretrained`.
        device: CUDA if there is one, by default.
        out: Folder for ``selection.json``, ``selection.png`` and ``selection.html``; nothing is
            written if None.
        cache: Whether to look for, and keep, the result in the cache folder.
        progress: Draw a progress bar.
        model_kwargs: More arguments of :meth:`FrozenDiT.from_pretrained`.

    Returns:
        SelectionResult: The pick, its curve, and what a careful reader should know.

    Example:
        >>> import numpy as np
        >>> from mmaselect import select_timestep
        >>> images = [np.full((32, 32, 3), 40 * n, np.uint8) for n in range(4)]
        >>> result = select_timestep(
        ...     'mmaselect://dit_cifar10', images, timesteps='0:1000:250', cache=False,
        ...     progress=False,
        ... )
        >>> result.timestep in (0, 250, 500, 750), len(result.curve.points)
        (True, 4)
    """
    options = SelectionOptions.parse(
        dict(
            criterion=criterion,
            others=others,
            timesteps=timesteps,
            num_images=num_images,
            image_size=image_size,
            batch_size=batch_size,
            seed=seed,
            views=views,
            method=method,
            confidence=confidence,
            refine=refine,
        )
    )
    if out is not None:
        check_path('out', out)
    flag('cache', cache)
    flag('progress', progress)
    device = pick_device(device)
    if isinstance(model, FrozenDiT):
        dit = model
    else:
        dit = FrozenDiT.from_pretrained(
            model, blocks=blocks, features=feature, dtype=dtype, **model_kwargs
        )
        dit.to(device)
    source = calibration_source(images, labels)
    sweep = Sweep.of_source(dit, source, options, SelectionCache() if cache else None)
    result = sweep.run(progress=progress)
    if out is not None:
        save_report(result, out, try_thumbnails(sweep.calibration))
    return result
