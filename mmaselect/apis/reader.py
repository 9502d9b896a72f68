# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""What every face of a frozen model shares: where it is read, how that is picked, and reading."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from mmaselect.apis.sharing import SharedPick
from mmaselect.checks import is_sequence, seed_number, shorten
from mmaselect.diffusion import FrozenDiT, ModelSource, TapKey
from mmaselect.diffusion.finite_watch import FiniteWatch
from mmaselect.diffusion.map_reader import FixedNoise, read_maps
from mmaselect.diffusion.process import ForwardProcess
from mmaselect.diffusion.timestep_plan import TimestepPlan
from mmaselect.images import ImageSource
from mmaselect.images.inputs import ImageLike, ImageList
from mmaselect.images.sources import build_image_source
from mmaselect.report.notice import announce_pick
from mmaselect.selection import SelectionCache, SelectionOptions, SelectionResult, Sweep
from mmaselect.selection.identity import check_result_model
from mmaselect.selection.options import not_selected

#: Images to select a timestep on.
Calibration = ImageLike | Sequence[ImageLike] | Mapping[str, Any] | ImageSource
#: Arguments of earlier versions, and the entries of ``timestep`` that they are now.
OLD_TIMESTEP = {'fusion': 'fusion'}
#: Where to read: once, or several times.
Timesteps = (
    int
    | str
    | SelectionResult
    | Sequence[int | str | SelectionResult]
    | Mapping[str, Any]
    | TimestepPlan
)


def calibration_source(
    images: Calibration | None,
    labels: Sequence[int] | None = None,
    array_order: str = 'rgb',
    value_range: tuple[float, float] | None = None,
) -> ImageSource:
    """Images to select a timestep on, from whatever a caller has.

    Args:
        images: Paths or datasets, as :func:`~mmaselect.images.sources.build_image_source` takes
            them, or images in any form that :func:`~mmaselect.images.inputs.list_images` takes.
        labels: One class label per image of a list, for label-aware criteria.
        array_order: Channel order of datasets in memory.
        value_range: What tensors of floats have; (-1, 1) if None.

    Raises:
        FileNotFoundError: If a path leads nowhere.
        ValueError: If there are no images, or labels do not fit them.
    """
    given: Any = images
    paths = [given] if isinstance(given, (str, Path)) else given
    is_paths = is_sequence(paths) and all(isinstance(one, (str, Path)) for one in paths)
    is_files = is_paths and len(paths) > 0 and all(os.path.isfile(one) for one in paths)
    single = isinstance(images, (np.ndarray, Tensor, Image.Image, bytes, bytearray))
    if single or (is_sequence(images) and (not is_paths or (is_files and labels is not None))):
        return ImageList(given, labels, value_range)
    if labels is not None:
        raise ValueError(
            f'labels are for a list of images, one for each; images is {shorten(images)}, whose '
            f'order is its own. Leave labels out, or give a list of files'
        )
    return build_image_source(images, array_order)


class Reader:
    """Reads batches of images at one timestep or at several, with noise that depends on a seed.

    Args:
        dit: The frozen model.
        timestep: A number, a :class:`SelectionResult`, ``'auto'``, or a list of different ones, of
            which one may be ``'auto'``; or a dict of such ``steps`` and ``fusion``.
        seed: Seed of the noise, which depends on it and on the latent's shape alone.
        calibration: For ``'auto'``: see :func:`calibration_source`.
        selection: For ``'auto'``: options of the selection, as the backbone takes them.
        image_size: Image size of the calibration images, where ``selection`` does not say it; the
            model's own if None.
        progress: Draw a progress bar of the sweep.
        value_range: What tensors of floats among the calibration images have; (-1, 1) if None.

    Attributes:
        selection_result (SelectionResult | None): Curve and pick, if this reader selected, or if
            one was given as its timestep.

    Raises:
        ValueError: If a timestep is out of range, or ``'auto'`` has nothing to be selected on.
    """

    def __init__(
        self,
        dit: FrozenDiT,
        timestep: Timesteps,
        seed: int = 0,
        calibration: Calibration | None = None,
        selection: Mapping[str, Any] | str | None = None,
        image_size: int | tuple[int, int] | None = None,
        progress: bool = False,
        value_range: tuple[float, float] | None = None,
    ) -> None:
        self.dit = dit
        self.plan = timestep_plan(timestep)
        results = _results_in(timestep)
        for result in results:
            check_result_model(result, dit)
        self._noise = FixedNoise(seed_number('seed', seed))
        self._watch = FiniteWatch()
        self.selection_result = results[0] if len(results) == 1 else None
        options = SelectionOptions.parse(selection)
        given = [dit.process.check_timestep(s) for s in self.plan.steps if isinstance(s, int)]
        if not self.plan.is_automatic and dit.search is None:
            steps = self.plan.steps[0] if self.plan.count == 1 else list(self.plan.steps)
            unused = not_selected(steps, calibration=calibration, selection=selection)
            if unused is not None:
                raise ValueError(f'{unused}: leave out either')
            self._picked = given[0]
            return
        source = calibration_source(calibration, None, options.array_order, value_range)
        if not self.plan.is_automatic:
            options = options.replaced(timesteps=given[:1])
        if options.image_size is None and image_size is not None:
            options = options.replaced(image_size=image_size)
        sweep = Sweep.of_source(dit, source, options, SelectionCache(options.cache_dir))
        self.selection_result = sweep.run(progress=progress)
        announce_pick(sweep, self.selection_result)
        if dit.search is not None:
            dit.settle(self.selection_result.cells, self.selection_result.is_joined)
        self._picked = self.selection_result.timestep if self.plan.is_automatic else given[0]

    @property
    def timestep(self) -> int:
        """Where images are read: of several timesteps the picked one or, without one, the first."""
        return self._picked

    @timestep.setter
    def timestep(self, value: int) -> None:
        self._picked = self.dit.process.check_timestep(value)

    @property
    def timesteps(self) -> tuple[int, ...]:
        """All timesteps that images are read at."""
        return self.plan.resolved(self._picked)

    @property
    def keys(self) -> tuple[TapKey, ...]:
        """(block, feature) of every map."""
        return self.dit.keys

    def shared_pick(self, source: ModelSource, **more: Any) -> SharedPick:
        """Where the model is read, for others: see :class:`~mmaselect.apis.sharing.SharedPick`."""
        found = self.selection_result
        result = found if found is not None and found.timestep == self.timestep else None
        fusion, seed = self.plan.fusion, self._noise.seed
        return SharedPick.of(self.dit, source, self.timesteps, fusion, result, seed=seed, **more)

    def channels(self, key: TapKey) -> int:
        """Channels of a map."""
        return self.plan.channels(self.dit.channels(key))

    def read(self, pixels: Tensor) -> dict[TapKey, Tensor]:
        """Float32 maps of a batch (B, 3, H, W), RGB in [-1, 1]."""
        return read_maps(self.dit, self.plan, self.timestep, pixels, self._noise, self._watch)


def _results_in(timestep: Timesteps) -> list[SelectionResult]:
    """The selections among what a caller gave."""
    steps: Any = timestep.get('steps') if isinstance(timestep, Mapping) else timestep
    given = steps if is_sequence(steps) else [steps]
    return [one for one in given if isinstance(one, SelectionResult)]


def timestep_plan(timestep: Timesteps) -> TimestepPlan:
    """A plan from what a caller gave, unless it is a plan already; a selection stands for its pick.

    Raises:
        ValueError: If it is not a timestep, nor a list of different ones.
    """

    def number(step: Any) -> Any:
        return step.timestep if isinstance(step, SelectionResult) else step

    def numbers(steps: Any) -> Any:
        return [number(step) for step in steps] if is_sequence(steps) else number(steps)

    if isinstance(timestep, Mapping):
        given = {k: numbers(v) if k == 'steps' else v for k, v in timestep.items()}
        return TimestepPlan.parse(given, ('steps', 'fusion'))
    return TimestepPlan.parse(numbers(timestep))


def check_schedule(
    plan: TimestepPlan,
    selection: SelectionOptions | Mapping[str, Any] | str | None,
    process: ForwardProcess,
) -> None:
    """Check timesteps before weights are read: those that are given, and the grid of a selection.

    Args:
        plan: At which timesteps the model will be read.
        selection: How ``'auto'`` selects.
        process: The model's.

    Raises:
        ValueError: If one is out of range.
    """
    for step in plan.steps:
        if isinstance(step, int):
            process.check_timestep(step)
    if plan.is_automatic:
        SelectionOptions.parse(selection).check_schedule(process)
