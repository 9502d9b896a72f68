# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Images of a toolbox's dataset, loaded as its config says."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from mmengine import fileio
from mmengine.dataset import BaseDataset, Compose
from mmengine.registry import DATASETS, TRANSFORMS

from mmaselect.checks import choice, is_sequence
from mmaselect.images.reading import UnreadableImageError, as_rgb, load_rgb, naming_image
from mmaselect.images.sources import ARRAY_ORDERS, ImageSource, not_calibration
from mmaselect.openmmlab.pickled_files import plain_values

#: Wrappers that mix images with one another, which is augmentation: what they wrap is read.
MIXERS = ('MultiImageMixDataset',)


class Loading:
    """What a pipeline loads, without what it augments; the only transform of a dataset's pipeline.

    It loads nothing by itself: it hands the entry back with what loads it, through whatever
    wrappers a dataset has.

    Args:
        pipeline: The dataset's pipeline, of configs or of transforms.
        backend_args: Backend args of the dataset, for files that no transform loads.
    """

    def __init__(
        self, pipeline: Sequence[Any] = (), backend_args: Mapping[str, Any] | None = None
    ) -> None:
        transforms = [step for step in pipeline if _type_name(step).startswith('Load')]
        self.annotations = [step for step in transforms if 'Ann' in _type_name(step)]
        self.images = [step for step in transforms if step not in self.annotations]
        self.backend_args = backend_args
        self._built: list[Callable] | None = None
        self._built_labels: list[Callable] | None = None

    def __call__(self, info: dict[str, Any]) -> tuple[dict[str, Any], Loading]:
        return info, self

    def label_transforms(self) -> list[Callable]:
        """What loads labels, where the pipeline has it."""
        if self._built_labels is None:
            self._built_labels = [_build(step) for step in self.annotations]
        return self._built_labels

    def image(self, info: Mapping[str, Any], name: str, array_order: str) -> np.ndarray:
        """The image of an entry, (H, W, 3) uint8, RGB.

        Args:
            info: The entry.
            name: How messages call it.
            array_order: Channel order of arrays that the entry itself holds.

        Raises:
            UnreadableImageError: If it cannot be loaded.
            ValueError: If the entry has no image, or one that is not a RGB image.
        """
        if self._built is None:
            # Built where they are needed: a config may name transforms of a toolbox in scope.
            self._built = [_build(step) for step in self.images]
        if 'img' not in info and not self._built:
            if 'img_path' not in info:
                raise ValueError(
                    f'{name} cannot serve for calibration: the entries of its dataset have neither '
                    f'img_path nor img (they have {sorted(info)})'
                )
            return load_rgb(info['img_path'], partial(fileio.get, backend_args=self.backend_args))
        # The toolboxes' images are BGR, unless the dataset has arrays of its own.
        order = array_order if 'img' in info else 'bgr'
        results: Any = dict(info)
        to_float = False
        for transform in self._built:
            try:
                results = transform(results)
            except Exception as error:
                raise UnreadableImageError(
                    name, f'{type(transform).__name__}: {type(error).__name__}: {error}'
                ) from error
            if results is None or results.get('img') is None:
                raise UnreadableImageError(name, f'{type(transform).__name__} gave no image')
            to_float = to_float or bool(getattr(transform, 'to_float32', False))
            if getattr(transform, 'imdecode_backend', None) == 'tifffile':
                order = array_order  # it gives the file's own order
        image = np.asarray(results['img'])
        if to_float and image.dtype.kind == 'f':
            if not (np.isfinite(image).all() and image.min() >= 0 and image.max() <= 255):
                raise ValueError(
                    f'{name}: its loading gives numbers from {image.min():.4g} to '
                    f'{image.max():.4g}, and images of 0 to 255 are expected'
                )
            image = np.rint(image).astype(np.uint8)
        return as_rgb(image, name, order)


def _type_name(step: Any) -> str:
    """Name of a transform's class, from the transform or its config."""
    kind = step.get('type', '') if isinstance(step, Mapping) else type(step)
    return (kind if isinstance(kind, str) else getattr(kind, '__name__', '')).rpartition('.')[2]


def _build(step: Any) -> Callable:
    if not isinstance(step, Mapping):
        return step
    import mmcv.transforms  # noqa: F401 (registers the toolboxes' common ones)

    return TRANSFORMS.build(dict(step))


def build_dataset(config: Mapping[str, Any]) -> BaseDataset:
    """A dataset from its config, with nothing in its pipelines but what loads images and labels.

    Args:
        config: The config; wrappers (``RepeatDataset``, ``ConcatDataset``, ...) hold further ones.

    Raises:
        ValueError: If it holds no images.
    """
    config = _loading_only(config)
    empty = (
        f'the calibration set is empty: {config.get("type")} found no images. Check its '
        f'data_root and data_prefix'
    )
    try:
        with plain_values():
            dataset = DATASETS.build(config)
    except ValueError as error:
        # What MMEngine's BaseDataset says when it serializes no entries.
        if 'need at least one array to concatenate' in str(error):
            raise ValueError(empty) from error
        raise ValueError(_cannot_build(config, error)) from error
    except Exception as error:
        # Whatever a dataset's own code meets: it is the config that is to be mended.
        raise ValueError(_cannot_build(config, error)) from error
    if len(dataset) == 0:
        raise ValueError(empty)
    return dataset


def _cannot_build(config: Mapping[str, Any], error: Exception) -> str:
    file = config.get('ann_file')
    return (
        f'the dataset {config.get("type")!r} (of calibration, or of a dataloader'
        f'{f"; ann_file={file!r}" if file else ""}) cannot be built '
        f'from its config: {type(error).__name__}: {error}'
    )


def _loading_only(config: Mapping[str, Any]) -> dict[str, Any]:
    """A dataset's config, and all that it wraps, without augmentation."""
    if _type_name(config) in MIXERS and isinstance(config.get('dataset'), Mapping):
        return _loading_only(config['dataset'])
    kept = {key: value for key, value in config.items() if key != 'pipeline'}
    pipeline = config.get('pipeline')
    loading = Loading(pipeline if is_sequence(pipeline) else (), config.get('backend_args') or None)
    if loading.images or loading.annotations or loading.backend_args:
        kept['pipeline'] = [loading]
    for key in ('dataset', 'datasets'):
        inner = kept.get(key)
        if isinstance(inner, Mapping):
            kept[key] = _loading_only(inner)
        elif is_sequence(inner):
            kept[key] = [_loading_only(i) if isinstance(i, Mapping) else i for i in inner]
    return kept


class DatasetImages(ImageSource):
    """The images of a toolbox dataset: loaded as its pipeline loads them, not augmented, RGB.

    Args:
        dataset: Anything with ``__len__`` and ``get_data_info``; an entry holds ``img_path``, or
            ``img`` as an array (H, W, 3), or (H, W), uint8. :func:`build_dataset` gives one whose
            own loading is used (``backend_args``, ``LoadImage...`` transforms); without any, files
            are read by :func:`~mmaselect.images.reading.load_rgb`.
        array_order: Channel order of arrays in memory. What a transform loads from a file is taken
            for BGR, as in the toolboxes.

    Raises:
        ValueError: If ``array_order`` is neither ``'rgb'`` nor ``'bgr'``.
    """

    def __init__(self, dataset: BaseDataset, array_order: str = 'rgb') -> None:
        self.array_order = choice('array_order', array_order, ARRAY_ORDERS)
        while type(dataset).__name__ in MIXERS:
            dataset = dataset.dataset
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def entry(self, index: int) -> tuple[dict[str, Any], Loading]:
        """An entry of the dataset, and what loads it.

        Raises:
            UnreadableImageError: If the dataset raises anything.
        """
        with naming_image(f'image {index} of {type(self.dataset).__name__}'):
            return self._entry(index)

    def _entry(self, index: int) -> tuple[dict[str, Any], Loading]:
        if _has_loading(self.dataset):
            found = self.dataset[index]
            if isinstance(found, tuple):
                return found
        pipeline = getattr(self.dataset, 'pipeline', None)
        steps = pipeline.transforms if isinstance(pipeline, Compose) else ()
        return self.dataset.get_data_info(index), Loading(
            steps, getattr(self.dataset, 'backend_args', None)
        )

    def load(self, index: int) -> np.ndarray:
        info, loading = self.entry(index)
        return loading.image(info, self.name(index), self.array_order)

    def name(self, index: int) -> str:
        path = self.dataset.get_data_info(index).get('img_path')
        return f'image {index} of {type(self.dataset).__name__}' if path is None else str(path)

    def described(self) -> str:
        root = getattr(self.dataset, 'data_root', None)
        return f'{type(self.dataset).__name__}{f" in {root}" if root else ""}'

    def label(self, index: int) -> int | None:
        label = self.dataset.get_data_info(index).get('gt_label')
        return None if label is None or np.ndim(label) else int(label)


def _has_loading(dataset: Any) -> bool:
    """Whether a dataset, or one that it wraps, hands out entries with what loads them."""
    pipeline = getattr(dataset, 'pipeline', None)
    if isinstance(pipeline, Compose) and any(isinstance(t, Loading) for t in pipeline.transforms):
        return True
    inner = getattr(dataset, 'dataset', None)
    several = getattr(dataset, 'datasets', None) or ([] if inner is None else [inner])
    return any(_has_loading(one) for one in several)


def dataset_images(calibration: Any, array_order: str = 'rgb') -> ImageSource:
    """The images of a registered dataset.

    Args:
        calibration: The config of a dataset (neither its labels nor its augmentation are used), or
            a dataset that is built already.
        array_order: See :class:`DatasetImages`.

    Raises:
        ValueError: If it is something else, or holds no images.
    """
    if isinstance(calibration, Mapping) and isinstance(calibration.get('type'), (str, type)):
        calibration = build_dataset(calibration)
    if not hasattr(calibration, 'get_data_info') and not isinstance(
        getattr(calibration, 'dataset', None), BaseDataset
    ):
        raise ValueError(not_calibration(calibration))
    return DatasetImages(calibration, array_order)
