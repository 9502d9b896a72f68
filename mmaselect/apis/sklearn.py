# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""For scikit-learn: ``fit`` selects the timestep, ``transform`` gives a vector an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmaselect.apis.features import FeatureExtractor
from mmaselect.apis.reader import OLD_TIMESTEP, Timesteps, timestep_plan
from mmaselect.checks import any_spelling, gathered
from mmaselect.diffusion import ModelSource
from mmaselect.diffusion.timestep_plan import TimestepPlan
from mmaselect.images.inputs import list_images
from mmaselect.install import install_hint
from mmaselect.selection.options import not_selected

try:
    from sklearn.base import BaseEstimator, TransformerMixin
    from sklearn.utils.validation import check_is_fitted
except ImportError as error:
    raise ImportError(
        'DiTFeatures is a transformer of scikit-learn, which is not installed. Run: '
        + install_hint('analysis')
    ) from error


class DiTFeatures(TransformerMixin, BaseEstimator):
    """Images to vectors, by a frozen diffusion transformer at a timestep that is picked in ``fit``.

    Pickles hold the settings and the pick, and no frozen weights.

    Args:
        pretrained: Which model, as in :class:`~mmaselect.FeatureExtractor`.
        timestep: ``'auto'`` to select it in ``fit``, or a number; or a list of different ones, of
            which one may be ``'auto'``; or a dict of such ``steps`` and ``fusion``.
        blocks: Blocks to read; the family's default if None. Their vectors are joined. ``'auto'``:
            see :class:`~mmaselect.FeatureExtractor`.
        feature: ``'query'``, ``'key'``, ``'value'``, ``'attention'`` or ``'output'``.
        image_size: Side that images are scaled and cropped to; the model's own if None.
        selection: Options of :class:`~mmaselect.selection.SelectionOptions`; or a preset, such as
            ``'paper'`` (:class:`~mmaselect.selection.PaperHFR` says what it loses); the defaults if
            None.
        batch_size: Images per pass.
        seed: Seed of the noise, and of the choice of images.
        dtype: Precision of the frozen weights.
        device: CUDA if there is one, by default.
        fusion: An entry of ``timestep`` now; here for one more version.
        value_range: What tensors of floats have, as in :class:`~mmaselect.FeatureExtractor`.

    Attributes:
        timestep_ (int): Where images are read: of several timesteps the picked one or, where none
            was, the first.
        selection_ (SelectionResult | None): The selection, if ``fit`` made one.

    Example:
        >>> import numpy as np
        >>> from mmaselect.apis.sklearn import DiTFeatures
        >>> images = np.random.default_rng(0).integers(0, 255, (4, 32, 32, 3), dtype=np.uint8)
        >>> DiTFeatures('mmaselect://dit_cifar10', timestep=50).fit_transform(images).shape
        (4, 224)
    """

    @any_spelling
    def __init__(
        self,
        pretrained: str | Path | Mapping[str, Any] | ModelSource = 'mmaselect://dit_cifar10',
        timestep: Timesteps = 'auto',
        blocks: Sequence[int] | int | str | None = None,
        feature: str | Sequence[str] = 'query',
        image_size: int | None = None,
        selection: Mapping[str, Any] | str | None = None,
        batch_size: int = 32,
        seed: int = 0,
        dtype: str = 'auto',
        device: str | None = None,
        fusion: str | None = None,
        value_range: tuple[float, float] | None = None,
    ) -> None:
        self.pretrained = pretrained
        self.timestep = timestep
        self.blocks = blocks
        self.feature = feature
        self.image_size = image_size
        self.selection = selection
        self.batch_size = batch_size
        self.seed = seed
        self.dtype = dtype
        self.device = device
        self.fusion = fusion
        self.value_range = value_range

    def fit(self, X: Any, y: Any = None) -> DiTFeatures:
        """Select the timestep on some images.

        Args:
            X: Images in any form that :class:`~mmaselect.FeatureExtractor` takes; of an array, the
                first axis is that of the samples: (N, H, W) are grey images.
            y: Labels, which are not used.

        Raises:
            ValueError: If there is no image, or a setting is out of range.
        """
        plan = self._plan()
        unused = not_selected(plan.steps[0], selection=self.selection)
        if unused is not None and not plan.is_automatic:
            raise ValueError(f'{unused}: leave out either')
        extract = self._build(plan, _samples(X))
        self.selection_ = extract.selection_result
        self.timestep_ = extract.timestep
        self._extract: FeatureExtractor | None = extract
        return self

    def transform(self, X: Any) -> np.ndarray:
        """One vector an image: the mean of each map over its positions, maps joined.

        Args:
            X: Images in any form that :class:`~mmaselect.FeatureExtractor` takes; of an array, the
                first axis is that of the samples: (N, H, W) are grey images.

        Returns:
            ndarray: (images, channels of all blocks), float32.
        """
        extract = self._fitted()
        images = list_images(_samples(X))
        vectors = []
        for start in range(0, len(images), self.batch_size):
            maps = extract(images[start : start + self.batch_size])
            vectors.append(torch.cat([one.mean((2, 3)) for one in maps.values()], 1).cpu().numpy())
        if not vectors:
            raise ValueError('there are no images to transform')
        return np.concatenate(vectors)

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Names such as ``block3_query_0``."""
        extract = self._fitted()
        names = [
            f'block{block}_{feature}_{channel}'
            for (block, feature), channels in zip(extract.keys, extract.out_channels, strict=True)
            for channel in range(channels)
        ]
        return np.array(names, dtype=object)

    def _fitted(self) -> FeatureExtractor:
        """The extractor of ``fit``; a new one after unpickling."""
        check_is_fitted(self, 'timestep_')
        if self._extract is None:
            plan = self._plan()
            # A plan, not a list: the pick may be one of the others, and a list names none twice.
            known = TimestepPlan(plan.resolved(self.timestep_), plan.fusion)
            # What was picked, not what was open.
            picked = self.selection_
            place = None if picked is None else picked.place_arguments
            self._extract = self._build(known, place=place)
        return self._extract

    def _plan(self) -> TimestepPlan:
        flat = {} if self.fusion is None else dict(fusion=self.fusion)
        return timestep_plan(gathered('timestep', self.timestep, 'steps', OLD_TIMESTEP, flat))

    def _build(
        self, timestep: TimestepPlan, images: Any = None, place: Any = None
    ) -> FeatureExtractor:
        blocks, feature = place or (self.blocks, self.feature)
        options: dict[str, Any] = {}
        if timestep.is_automatic:
            given = self.selection
            chosen = dict(preset=given) if isinstance(given, str) else dict(given or {})
            options = dict(selection={'seed': self.seed, **chosen}, calibration=images)
        extract = FeatureExtractor(
            self.pretrained,
            timestep,
            blocks=blocks,
            feature=feature,
            dtype=self.dtype,
            device=self.device,
            seed=self.seed,
            image_size=self.image_size,
            batch_size=self.batch_size,
            value_range=self.value_range,
            **options,
        )
        # Images of any size come here.
        extract.image_size = self.image_size or extract.dit.native_size
        return extract

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        return {**state, '_extract': None} if '_extract' in state else state

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.no_validation = True
        return tags


def _samples(X: Any) -> Any:
    """The samples of ``X``; the first axis of an array is theirs, as everywhere in scikit-learn.

    Raises:
        ValueError: If they are rows of numbers, or a single image.
    """
    if not isinstance(X, (np.ndarray, torch.Tensor)) or X.ndim in (1, 4):
        return X
    shape = tuple(X.shape)
    if X.ndim == 3 and (isinstance(X, np.ndarray) or shape[0] != 3):
        if shape[-1] in (1, 3, 4) and isinstance(X, np.ndarray):
            raise ValueError(f'X of shape {shape} is one image: give a list of images, [image]')
        return [one[None] if isinstance(one, torch.Tensor) else one for one in X]
    if X.ndim == 2:
        raise ValueError(
            f'X of shape {shape} has rows of numbers, and which pixels are neighbors is lost: '
            f'reshape it to (n, height, width, 3), or to (n, height, width) if it is grey'
        )
    raise ValueError(f'X of shape {shape}: give (n, height, width, 3), or a list of images')
