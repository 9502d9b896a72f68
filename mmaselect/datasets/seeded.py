# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Augmentation that depends on the seed and a sample's place in the run, and on nothing else.

MMEngine seeds its worker processes when they start, so a resumed run augments as a run from the
beginning would. Here the sampler sends a sample's place along with its index, and the data set
seeds the random generators with it: the number of workers, and how often a run was started, no
longer matter.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from mmaselect.openmmlab.registries import DATA_SAMPLERS, DATASETS


class MapDataset(Protocol):
    """A data set of a known number of samples."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


class Place(NamedTuple):
    """Index of a sample, and what seeds its augmentation."""

    index: int  # type: ignore[assignment]  # not tuple.index, which nobody calls here
    entropy: tuple[int, ...]


def seed_everything(entropy: Sequence[int]) -> None:
    """Seed the global generators of Python, NumPy and PyTorch.

    Args:
        entropy: Whole numbers, not negative; any one of them changes all that is drawn.
    """
    words = np.random.SeedSequence(list(entropy)).generate_state(4, np.uint32)
    random.seed(int(words[0]))
    np.random.seed(words[1])  # noqa: NPY002 (what the toolboxes draw from)
    torch.manual_seed(int(words[2]) << 31 ^ int(words[3]))


@contextmanager
def seeded(entropy: Sequence[int]) -> Iterator[None]:
    """Seed the global generators on the CPU, and put their states back on leaving."""
    numpy_state = np.random.get_state()  # noqa: NPY002
    python_state, torch_state = random.getstate(), torch.get_rng_state()
    words = np.random.SeedSequence(list(entropy)).generate_state(4, np.uint32)
    try:
        random.seed(int(words[0]))
        np.random.seed(words[1])  # noqa: NPY002 (what the toolboxes draw from)
        torch.default_generator.manual_seed(int(words[2]) << 31 ^ int(words[3]))
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002
        torch.set_rng_state(torch_state)


@DATASETS.register_module()
class SeededDataset(Dataset):
    """A data set whose samples are augmented as the place that the sampler sends says.

    Everything else (attributes, plain indices) goes to the data set itself.

    Args:
        dataset: A data set, or the config of one.
    """

    def __init__(self, dataset: MapDataset | Mapping[str, Any]) -> None:
        self.dataset = DATASETS.build(dataset) if isinstance(dataset, Mapping) else dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, place: Place | int) -> Any:
        if not isinstance(place, Place):
            return self.dataset[place]
        with seeded(place.entropy):
            return self.dataset[place.index]

    def __getattr__(self, name: str) -> Any:
        if name.startswith('__') or name == 'dataset':
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __setattr__(self, name: str, value: Any) -> None:
        # A hook that replaces the pipeline means that of the data set itself.
        if name == 'dataset' or 'dataset' not in self.__dict__:
            super().__setattr__(name, value)
        else:
            setattr(self.dataset, name, value)


@DATA_SAMPLERS.register_module()
class PlaceSampler(Sampler):
    """Sends the place of each sample in the run along with its index.

    Args:
        sampler: Config of the sampler that chooses the indices.
        dataset: The data set, as MMEngine gives it.
        seed: The run's seed, as MMEngine gives it.
    """

    def __init__(
        self, sampler: Mapping[str, Any], dataset: Dataset, seed: int | None = None
    ) -> None:
        self.sampler = DATA_SAMPLERS.build(sampler, default_args=dict(dataset=dataset, seed=seed))
        self.dataset = dataset
        self._passed = 0
        if hasattr(self.sampler, 'skip'):
            self.skip = self._skip

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Place]:
        start, self._passed = self._passed, 0
        indices = iter(self.sampler)
        if not hasattr(self.sampler, 'skip'):
            for _ in range(start):
                next(indices, None)
        fixed = (
            int(getattr(self.sampler, 'seed', 0) or 0),
            int(getattr(self.sampler, 'rank', 0)),
            int(getattr(self.sampler, 'epoch', 0)),
        )
        for number, index in enumerate(indices, start):
            yield Place(int(index), (*fixed, number))

    def _skip(self, num_samples: int) -> None:
        self.sampler.skip(num_samples)
        self._passed = num_samples

    def start_at(self, num_samples: int) -> None:
        """Leave out the first samples of the next epoch: a run that stopped within one goes on."""
        self._passed = num_samples

    def set_epoch(self, epoch: int) -> None:
        """Tell the sampler which epoch it is."""
        if hasattr(self.sampler, 'set_epoch'):
            self.sampler.set_epoch(epoch)
