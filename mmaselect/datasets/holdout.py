# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""A validation set cut from the training images of a data set that has only train and test."""

from typing import Any

import numpy as np
from mmengine.dataset import BaseDataset

from mmaselect.checks import choice
from mmaselect.openmmlab.registries import DATASETS

PARTS = ('train', 'val')


def hold_out_indices(
    labels: np.ndarray, num_val: int | float, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Split images into two parts, keeping the share of every class.

    Each class gives ``num_val / N`` of its images; where that is not whole, the classes with the
    largest remainders give one more (ties by chance), so that the total is exact.

    Args:
        labels: (N,) class of every image.
        num_val: Number of images held out; a float in (0, 1) is a share of N.
        seed: Seed of the choice. Defaults to 0.

    Returns:
        tuple[np.ndarray, np.ndarray]: Sorted indices of what stays, and of what is held out.

    Raises:
        ValueError: If ``num_val`` does not leave at least one image on either side.

    Example:
        >>> import numpy as np
        >>> train, val = hold_out_indices(np.array([0, 0, 0, 0, 1, 1, 1, 1]), num_val=2)
        >>> len(train), len(val)
        (6, 2)
    """
    labels = np.asarray(labels)
    total = len(labels)
    count = round(num_val * total) if isinstance(num_val, float) and 0 < num_val < 1 else num_val
    if int(count) != count or not 0 < count < total:
        raise ValueError(
            f'num_val is {num_val} for {total} images; it must be a whole number from 1 to '
            f'{total - 1}, or a share between 0 and 1.'
        )
    rng = np.random.default_rng(seed)
    classes, sizes = np.unique(labels, return_counts=True)
    exact = sizes * (count / total)
    takes = np.floor(exact).astype(int)
    by_remainder = np.lexsort((rng.random(len(classes)), takes - exact))
    takes[by_remainder[: int(count) - takes.sum()]] += 1
    held_out = np.concatenate(
        [
            rng.permutation(np.flatnonzero(labels == label))[:take]
            for label, take in zip(classes, takes, strict=True)
        ]
    )
    held_out.sort()
    return np.setdiff1d(np.arange(total), held_out), held_out


@DATASETS.register_module(name='HoldOut')
def hold_out(
    dataset: dict, part: str, num_val: int | float, seed: int = 0, **kwargs: Any
) -> BaseDataset:
    """Build a data set and keep one part: most of its images, or those held out for validation.

    In a config, ``dict(type='mmaselect.HoldOut', part='train', num_val=600, dataset=...)`` and
    the same with ``part='val'`` share no image as long as ``num_val`` and ``seed`` agree.

    Args:
        dataset: Config of the data set; each of its items needs a ``gt_label``.
        part: ``'train'`` for the images that stay, ``'val'`` for those held out.
        num_val: Images held out: a number, or a share in (0, 1).
        seed: Seed of the choice. Defaults to 0.
        **kwargs: Further arguments for the inner data set (``pipeline``, say), over its own.

    Returns:
        BaseDataset: The inner data set itself, reduced to the part.

    Raises:
        ValueError: If ``part`` or ``num_val`` is out of range.
    """
    choice('HoldOut: part', part, PARTS)
    built = DATASETS.build({**dataset, **kwargs})
    built.full_init()
    labels = np.array([built.get_data_info(index)['gt_label'] for index in range(len(built))])
    indices = hold_out_indices(labels, num_val, seed)[PARTS.index(part)]
    built.get_subset_(indices.tolist())
    return built
