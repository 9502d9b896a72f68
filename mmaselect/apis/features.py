# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Feature maps of images, in a notebook or a script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmaselect.apis.reader import (
    OLD_TIMESTEP,
    Calibration,
    Reader,
    Timesteps,
    check_schedule,
    timestep_plan,
)
from mmaselect.apis.sharing import Shareable, SharedPick
from mmaselect.checks import any_spelling, check_image_size, flag, gathered, whole_number
from mmaselect.diffusion import FrozenDiT, ModelSource, TapKey
from mmaselect.diffusion.devices import pick_device
from mmaselect.images.inputs import (
    ImageLike,
    check_value_range,
    list_images,
    stack_pixels,
    to_pixels,
    warn_of_unit_range,
)
from mmaselect.selection import SelectionOptions, SelectionResult
from mmaselect.terminal.progress import progress_bar


class FeatureInfo:
    """What the maps are, as ``timm``'s models with ``features_only`` say it.

    Args:
        channels: Channels of each map.
        reduction: Image pixels per position of a map.
        names: Names of each map.
    """

    def __init__(self, channels: Sequence[int], reduction: int, names: Sequence[str]) -> None:
        self._channels = list(channels)
        self._reduction = reduction
        self._names = list(names)

    def channels(self) -> list[int]:
        """Channels of each map."""
        return list(self._channels)

    def reduction(self) -> list[int]:
        """Image pixels per position, of each map."""
        return [self._reduction] * len(self._channels)

    def module_name(self) -> list[str]:
        """Where each map is read, such as ``'block3.query'``."""
        return list(self._names)

    def __len__(self) -> int:
        return len(self._channels)


class FeatureExtractor(Shareable):
    """Any block and feature of a frozen diffusion transformer, for images as they are.

    Args:
        pretrained: Hub id, local pipeline folder, or ``mmaselect://NAME``; or a
            :class:`~mmaselect.diffusion.ModelSource`, or a dict of its fields.
        timestep: Where to read: a number, a :class:`SelectionResult`, or ``'auto'`` to select it on
            ``calibration``. A list of different ones, of which one may be ``'auto'``, reads at
            each, at one transformer pass for each. A dict of ``steps``, which are any of these, and
            ``fusion`` says how maps of several become one: ``'concat'`` joins their channels,
            ``'mean'`` averages them.
        blocks: Blocks to read; the family's default if None. ``'auto'`` picks one on
            ``calibration``, together with the timestep or at a fixed one; ``'auto:4'`` picks four,
            ``'auto:<=30'`` one of the blocks up to 30.
        feature: One or more of ``'query'``, ``'key'``, ``'value'``, ``'attention'``, ``'output'``.
        dtype: Precision of the frozen weights, or ``'auto'``, as in
            :meth:`FrozenDiT.from_pretrained`.
        device: CUDA if there is one, by default.
        seed: Seed of the noise, which depends on it and on the latent's shape alone.
        image_size: Side, or (height, width), in pixels, that images are scaled and cropped to. As
            they are if None: those of one call must then have one size.
        batch_size: Images per pass.
        calibration: For ``'auto'``: a folder of images or a list of folders, images in any form
            that a call takes, or the config of a registered dataset.
        selection: For ``'auto'``: ``'paper'`` (:class:`~mmaselect.selection.PaperHFR` says what
            it loses), ``'fast'``, or a dict with some of the fields of
            :class:`~mmaselect.selection.SelectionOptions`, as the backbone takes it. Results are
            kept in the same cache as the backbone's. ``image_size`` is this extractor's by default.
        progress: Draw progress bars, of the selection and of calls with several batches.
        condition: None for the empty condition; a class label or a prompt otherwise.
        value_range: What tensors of floats have: (0, 1), as torchvision makes them, (0, 255), ...;
            (-1, 1) if None, with a warning where they look like (0, 1).
        flat: ``fusion``, and fields of ``pretrained``, as in versions before it took them; a
            warning shows the new form.

    Attributes:
        keys (tuple[TapKey, ...]): (block, feature) of every map.
        out_channels (list[int]): Channels of each of them.
        feature_info (FeatureInfo): The same, as ``timm`` says it.
        timestep (int): Where images are read: of several timesteps the picked one or, where none
            was, the first. It can be set.
        timesteps (tuple[int, ...]): All of them.
        selection_result (SelectionResult | None): Curve and pick, if the timestep was selected.

    Raises:
        FileNotFoundError: If a path leads nowhere.
        ValueError: If a setting is out of range, or there is nothing to select on.

    Example:
        >>> import numpy as np
        >>> from mmaselect import FeatureExtractor
        >>> extract = FeatureExtractor('mmaselect://dit_cifar10', timestep=75)
        >>> photo = np.zeros((48, 40, 3), np.uint8)
        >>> extract(photo)[3, 'query'].shape
        torch.Size([1, 224, 12, 10])
        >>> extract.feature_info.channels(), extract.feature_info.reduction()
        ([224], [4])
        >>> photos = np.random.default_rng(0).integers(0, 255, (4, 32, 32, 3), np.uint8)
        >>> extract = FeatureExtractor(
        ...     'mmaselect://dit_cifar10', dict(steps=['auto', 300], fusion='mean'),
        ...     calibration=photos, selection=dict(timesteps=[0, 100]),
        ... )
        >>> extract.timestep == extract.selection_result.timestep, extract.timesteps[1]
        (True, 300)
    """

    @any_spelling
    def __init__(
        self,
        pretrained: str | Path | Mapping[str, Any] | ModelSource,
        timestep: Timesteps,
        blocks: Sequence[int] | int | str | None = None,
        feature: str | Sequence[str] = 'query',
        dtype: str | torch.dtype = 'auto',
        device: str | torch.device | None = None,
        seed: int = 0,
        image_size: int | tuple[int, int] | None = None,
        batch_size: int = 32,
        calibration: Calibration | None = None,
        selection: Mapping[str, Any] | str | None = None,
        progress: bool = False,
        condition: Any = None,
        value_range: tuple[float, float] | None = None,
        **flat: Any,
    ) -> None:
        self.image_size = None if image_size is None else check_image_size('image_size', image_size)
        self.value_range = check_value_range(value_range)
        self.batch_size = whole_number('batch_size', batch_size, 1)
        device = pick_device(device)
        timestep = gathered('timestep', timestep, 'steps', OLD_TIMESTEP, flat)
        self.source = ModelSource.gather(pretrained, flat, type(self), SelectionOptions.elsewhere())
        self.pretrained = str(self.source.model)
        self.dit = FrozenDiT.from_pretrained(
            self.source,
            blocks=blocks,
            feature=feature,
            dtype=dtype,
            condition=condition,
            check=partial(check_schedule, timestep_plan(timestep), selection),
        ).follow(device)
        self.progress = flag('progress', progress)
        self._reader = Reader(
            self.dit, timestep, seed, calibration, selection, self.image_size, progress,
            self.value_range,
        )  # fmt: skip
        self._condition = condition

    @classmethod
    def from_pretrained(
        cls,
        shared: str | Path,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool | None = None,
        **changes: Any,
    ) -> FeatureExtractor:
        """Read a model as somebody else did, by what ``save_pretrained`` wrote.

        Args:
            shared: Folder, or hub id, of the pick; the pick names the model.
            revision: Branch, tag or commit of the pick on the hub.
            token: Token of the hub.
            cache_dir: Where the hub's files are kept.
            local_files_only: Whether to look for the pick on this machine alone.
            changes: Further arguments: ``device``, ``dtype``, ``batch_size``, ``image_size``, ...

        Raises:
            FileNotFoundError: If there is no such folder and no such repository.
            ValueError: If it holds something else, if the model there is not the one that the
                selection was made with, or if a change is a part of the pick.
        """
        pick = SharedPick.load(
            shared,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
        )
        return cls(**pick.arguments(changes))

    def shared_pick(self) -> SharedPick:
        """What ``save_pretrained`` writes."""
        size = self.image_size
        return self._reader.shared_pick(
            self.source,
            condition=self._condition,
            settings={} if size is None else dict(image_size=size),
        )

    @property
    def timestep(self) -> int:
        return self._reader.timestep

    @timestep.setter
    def timestep(self, value: int) -> None:
        self._reader.timestep = value

    @property
    def timesteps(self) -> tuple[int, ...]:
        return self._reader.timesteps

    @property
    def selection_result(self) -> SelectionResult | None:
        return self._reader.selection_result

    @property
    def keys(self) -> tuple[TapKey, ...]:
        return self.dit.keys

    @property
    def out_channels(self) -> list[int]:
        return [self._reader.channels(key) for key in self.keys]

    @property
    def stride(self) -> int:
        """Image pixels per position of a map."""
        return self.dit.stride

    @property
    def feature_info(self) -> FeatureInfo:
        names = [f'block{block}.{feature}' for block, feature in self.keys]
        return FeatureInfo(self.out_channels, self.stride, names)

    def to(self, device: str | torch.device) -> FeatureExtractor:
        """Move the model to a device.

        Raises:
            ValueError: If there is no such device.
        """
        self.dit.follow(pick_device(device))
        return self

    def __repr__(self) -> str:
        dit, plan = self.dit, self._reader.plan
        steps = str(self.timestep)
        if plan.count > 1:
            steps = f'{list(self.timesteps)}, fusion={plan.fusion!r}'
        return (
            f'FeatureExtractor({self.pretrained!r}, {dit.family.transformer_class}, '
            f'timestep={steps}, blocks={list(dit.blocks)} of {dit.num_blocks}, '
            f'feature={list(dit.feature_names)}, out_channels={self.out_channels}, '
            f'stride={self.stride}, image_size={self.image_size}, '
            f'dtype={str(dit.dtype).removeprefix("torch.")}, device={str(dit.device)!r})'
        )

    def __call__(self, images: ImageLike | Sequence[ImageLike]) -> dict[TapKey, Tensor]:
        """Feature maps of one image or of several.

        Args:
            images: Paths of files or of folders, bytes of files, PIL images, arrays (H, W),
                (H, W, 3) or (N, H, W, 3), uint8, uint16 or float from 0 to 1, tensors (3, H, W) or
                (N, 3, H, W), float in ``value_range`` or uint8; alone or in a list.

        Returns:
            dict: (block, feature) to float32 maps (B, C, ceil(H / stride), ceil(W / stride)).

        Raises:
            FileNotFoundError: If a path leads nowhere.
            ValueError: If an image is something else, or sizes differ and there is no image_size.
        """
        given = list_images(images)
        if not given:
            raise ValueError('images is empty: give at least one image')
        if self.value_range is None:
            warn_of_unit_range(given)
        pixels = [
            to_pixels(image, f'image {place}', self.image_size, self.value_range).cpu()
            for place, image in enumerate(given)
        ]
        batch = stack_pixels(pixels)
        starts = range(0, len(batch), self.batch_size)
        parts = []
        with progress_bar('batches', disable=not self.progress or len(starts) == 1) as bar:
            task = bar.add_task('reading features', total=len(starts))
            for start in starts:
                part = batch[start : start + self.batch_size]
                parts.append(self._reader.read(part.to(self.dit.device)))
                bar.advance(task)
        if len(parts) == 1:
            return parts[0]
        return {key: torch.cat([part[key] for part in parts]) for key in self.keys}
