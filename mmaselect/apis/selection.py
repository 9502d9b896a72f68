# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Selection in one call."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import torch

from mmaselect.apis.reader import Calibration, calibration_source
from mmaselect.checks import any_spelling, check_path, flag
from mmaselect.diffusion import FrozenDiT, ModelSource
from mmaselect.diffusion.devices import pick_device
from mmaselect.diffusion.model_source import check_flat_names, check_not_loaded
from mmaselect.look import save_sweep_report
from mmaselect.selection import SelectionCache, SelectionOptions, SelectionResult, Sweep


@any_spelling
def select(
    model: str | Path | Mapping[str, Any] | ModelSource | FrozenDiT,
    images: Calibration,
    *,
    labels: Sequence[int] | None = None,
    blocks: Sequence[int] | int | str | None = None,
    feature: str | Sequence[str] = 'query',
    selection: SelectionOptions | Mapping[str, Any] | str | None = None,
    dtype: str | torch.dtype = 'auto',
    device: str | torch.device | None = None,
    condition: Any = None,
    out: str | Path | None = None,
    cache: bool = True,
    progress: bool = True,
    **options: Any,
) -> SelectionResult:
    """Pick the timestep, and the place, at which a diffusion transformer's features are best.

    No labels are needed. The place, a (block, feature), is picked where ``blocks`` or ``feature``
    is ``'auto'``; ``cells`` of the result has it. ``select_timestep`` is an older name.

    Args:
        model: Hub id, local pipeline folder, ``mmaselect://NAME``, a
            :class:`~mmaselect.diffusion.ModelSource` or a dict of its fields, or a loaded model
            (then without ``blocks``, ``feature``, ``dtype`` and ``condition``).
        images: A folder of images or a list of folders, a list of images (paths of files, arrays,
            PIL images, ... as :class:`~mmaselect.FeatureExtractor` takes them), or a registered
            dataset's config.
        labels: One class label per image of a list, for label-aware criteria.
        blocks: Blocks to score; the family's default if None. ``'auto'`` picks one, ``'auto:4'``
            four, ``'auto:<=30'`` one of the blocks up to 30.
        feature: One or more of ``'query'``, ``'key'``, ``'value'``, ``'attention'``, ``'output'``;
            ``'auto'`` picks one of these.
        selection: A preset, or options, which ``options`` change. ``'paper'`` is the paper's
            criterion (:class:`~mmaselect.selection.PaperHFR` says what it loses), ``'fast'`` takes
            fewer passes.
        dtype: Precision of the frozen weights, or ``'auto'``, as in
            :meth:`FrozenDiT.from_pretrained`.
        device: CUDA if there is one, by default.
        condition: None for the empty condition; a class label or a prompt otherwise.
        out: Folder for ``selection.json``, ``selection.png`` and ``selection.html``; nothing is
            written if None.
        cache: Whether to look for, and keep, the result in the cache folder.
        progress: Draw a progress bar.
        options: Fields of :class:`~mmaselect.selection.SelectionOptions`, such as
            ``num_images=256``.

    Returns:
        SelectionResult: The pick, its curve, and what a careful reader should know.

    Example:
        >>> import numpy as np
        >>> from mmaselect import select
        >>> images = [np.full((32, 32, 3), 40 * n, np.uint8) for n in range(4)]
        >>> result = select(
        ...     'mmaselect://dit_cifar10', images, timesteps='0:1000:250', cache=False,
        ...     progress=False,
        ... )
        >>> result.timestep in (0, 250, 500, 750), len(result.curve.points)
        (True, 4)
    """
    if out is not None:
        check_path('out', out)
    flag('progress', progress)
    sweep = build_sweep(
        model,
        images,
        labels,
        blocks,
        feature,
        selection,
        dtype,
        device,
        condition,
        cache,
        **options,
    )
    result = sweep.run(progress=progress)
    if out is not None:
        save_sweep_report(sweep, result, out)
    return result


@any_spelling
def build_sweep(
    model: str | Path | Mapping[str, Any] | ModelSource | FrozenDiT,
    images: Calibration,
    labels: Sequence[int] | None = None,
    blocks: Sequence[int] | int | str | None = None,
    feature: str | Sequence[str] = 'query',
    selection: SelectionOptions | Mapping[str, Any] | str | None = None,
    dtype: str | torch.dtype = 'auto',
    device: str | torch.device | None = None,
    condition: Any = None,
    cache: bool = True,
    **options: Any,
) -> Sweep:
    """The sweep of :func:`select`, which says what the arguments are."""
    flag('cache', cache)
    changes = {name: options.pop(name) for name in SelectionOptions.names() if name in options}
    check_flat_names(options, select_timestep)
    how = SelectionOptions.parse(selection).replaced(**changes)
    device = pick_device(device)
    if isinstance(model, FrozenDiT):
        check_not_loaded(
            dict(blocks=blocks, feature=feature, dtype=dtype, condition=condition, **options)
        )
        dit = model
    else:
        dit = FrozenDiT.from_pretrained(
            model,
            blocks=blocks,
            feature=feature,
            dtype=dtype,
            condition=condition,
            check=how.check_schedule,
            **options,
        ).follow(device)
    source = calibration_source(images, labels, how.array_order)
    return Sweep.of_source(dit, source, how, SelectionCache(how.cache_dir) if cache else None)


def _with_options(signature: inspect.Signature) -> inspect.Signature:
    """A signature with the selection's options as keywords, for ``help`` and editors."""
    *stated, rest = signature.parameters.values()
    keyword = inspect.Parameter.KEYWORD_ONLY
    added = [
        inspect.Parameter(
            option.name,
            keyword,
            default=None if option.default is MISSING else option.default,
            annotation=option.type,
        )
        for option in fields(SelectionOptions)
    ]
    return signature.replace(parameters=[*stated, *added, rest])


select.__signature__ = _with_options(  # type: ignore[attr-defined]
    inspect.signature(select)
)
#: The name of earlier versions.
select_timestep = select
