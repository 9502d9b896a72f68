# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Says what a cache of the frozen part will need before a run, and shares it among the ranks."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from mmengine.dist import barrier
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor
from torch.utils.data import DataLoader

from mmaselect.datasets.seeded import seeded
from mmaselect.models.backbones import ASelecTDiT
from mmaselect.openmmlab.registries import HOOKS

#: Images of the training set that are looked at, and how often each is drawn.
PROBED_IMAGES, DRAWS = 4, 16
#: An image that comes in more variants than this, of so many draws, is random without an end.
MAX_VARIANTS_SEEN = 12


@HOOKS.register_module()
class FrozenCacheHook(Hook):
    """Looks after the ``cache`` of an :class:`~mmaselect.models.ASelecTDiT`.

    Before training it draws a few training images several times, through the data set's own
    pipeline: where each comes in a new variant every time, nothing can be kept, and that is an
    error. Where there are few variants (flips, some crops), it says how much room all of them
    take, and it is an error if that is more than there is. After each epoch it writes what is in
    memory, so that every rank finds what the others have computed.

    ``tools/train.py`` and ``tools/test.py`` add it; without a cache it does nothing.
    """

    #: After the timestep is settled, and before the first batch is loaded.
    priority = 'HIGH'

    def __init__(self) -> None:
        self._epoch_iters = 0

    def before_train(self, runner: Runner) -> None:
        for name, backbone in cached_backbones(runner):
            if backbone.cache is not None:
                self._check(runner, name, backbone)
        loader = runner.train_dataloader
        batch_size = getattr(loader, 'batch_size', None) or 1
        self._epoch_iters = max(1, -(-len(loader.dataset) // (batch_size * runner.world_size)))

    def _check(self, runner: Runner, name: str, backbone: ASelecTDiT) -> None:
        cache = backbone.cache
        assert cache is not None
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        processor = model.data_preprocessor
        augments = getattr(processor, 'batch_augments', None)
        if augments:
            raise ValueError(
                f'{name}: cache={cache.kind!r} keeps results of single images, and the '
                f'data_preprocessor mixes images of a batch (batch_augments). Remove one of the two'
            )
        loader = runner.train_dataloader
        prepare = _preparation(loader, processor, training=True)
        variants, size = count_variants(loader.dataset, prepare)
        if variants is None:
            raise ValueError(
                f'{name}: cache={cache.kind!r} cannot hold what the training pipeline gives: an '
                f'image came in more than {MAX_VARIANTS_SEEN} variants in {DRAWS} draws. Take out '
                f'of it what is random without an end (RandomCrop, RandomResizedCrop, '
                f'PhotoMetricDistortion, ColorJitter, RandomErasing, ...; a flip may stay), or set '
                f'cache=None'
            )
        # A data set that repeats another has its images but once.
        count = len(loader.dataset) // getattr(loader.dataset, 'times', 1)
        wanted = {'training': (count, variants, size)}
        if runner.val_loop is not None:
            val = runner.val_dataloader
            _, size = count_variants(val.dataset, _preparation(val, processor, False), draws=1)
            wanted['validation'] = (len(val.dataset), 1, size)
        steps = backbone.timesteps
        runner.logger.info(f'{name}: {cache.check_room(wanted, steps)}')

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        if (batch_idx + 1) % self._epoch_iters == 0:
            share(runner)

    def after_train(self, runner: Runner) -> None:
        share(runner)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        share(runner)

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        share(runner)


def cached_backbones(runner: Runner) -> Iterator[tuple[str, ASelecTDiT]]:
    """Name in the model and backbone, of all backbones with a cache."""
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    for name, module in model.named_modules():
        if isinstance(module, ASelecTDiT) and module.cache is not None:
            yield name, module


def share(runner: Runner) -> None:
    """Write what caches hold in memory, on all ranks, and go on when it is there."""
    backbones = list(cached_backbones(runner))
    for _, backbone in backbones:
        if backbone.cache is not None:
            backbone.cache.flush()
    if backbones:
        barrier()


def _preparation(loader: DataLoader, processor: Any, training: bool) -> Callable[[Any], Tensor]:
    """What makes of a sample of a data set the images that reach the backbone, (1, 3, H, W)."""

    def prepare(sample: Any) -> Tensor:
        data = processor(loader.collate_fn([sample]), training)
        inputs = data['inputs'] if isinstance(data, Mapping) else data[0]
        return inputs if isinstance(inputs, Tensor) else torch.stack(list(inputs))

    return prepare


def count_variants(
    dataset: Any, prepare: Callable[[Any], Tensor], draws: int = DRAWS
) -> tuple[int | None, tuple[int, int]]:
    """In how many variants an image comes, and its size.

    The random generators are left as they were.

    Args:
        dataset: A data set with a pipeline.
        prepare: Makes images (1, 3, H, W) of a sample.
        draws: How often each of a few images is drawn.

    Returns:
        tuple: An estimate of the number, None if there is no end to it, and (height, width).
    """
    images = range(0, len(dataset), max(1, len(dataset) // PROBED_IMAGES))[:PROBED_IMAGES]
    seen = []
    for image in images if draws > 1 else images[:1]:
        variants = set()
        for draw in range(draws):
            with seeded((image, draw)):
                inputs = prepare(dataset[image])
            pixels = inputs.float().cpu().contiguous().numpy()
            variants.add((pixels.shape, hashlib.sha256(pixels.data).digest()))
        seen.append(len(variants))
    size = (inputs.shape[-2], inputs.shape[-1])
    mean = sum(seen) / len(seen)
    if mean > MAX_VARIANTS_SEEN:
        return None, size
    return min(range(1, 2 * DRAWS), key=lambda count: abs(_expected(count, draws) - mean)), size


def _expected(variants: int, draws: int) -> float:
    """How many of so many equally likely variants are seen in so many draws, on average."""
    return variants * (1 - (1 - 1 / variants) ** draws)
