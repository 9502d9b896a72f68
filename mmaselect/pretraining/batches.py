# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""The batch of a step: all that is random in a step is drawn here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor

from mmaselect.pretraining.parts import TrainOptions, TrainParts
from mmaselect.pretraining.randomness import DataOrder, step_generator


@dataclass(frozen=True)
class Batch:
    """Noised samples, and what the network is to make of them.

    Attributes:
        noisy: (B, C, H, W).
        model_times: (B,), timesteps as the network takes them.
        labels: (B,), classes; some of them the null class.
        expected: What the network should put out, as `TokenDrop.kept` returns it.
        kept: (B, count), the tokens that are trained on; None for all.
    """

    noisy: Tensor
    model_times: Tensor
    labels: Tensor
    expected: Tensor
    kept: Tensor | None

    def split(self, parts: int) -> Iterator[Batch]:
        """Cut into smaller batches."""
        for index in torch.arange(len(self.labels)).chunk(parts):
            part = slice(int(index[0]), int(index[-1]) + 1)
            yield Batch(
                self.noisy[part],
                self.model_times[part],
                self.labels[part],
                self.expected[part],
                None if self.kept is None else self.kept[part],
            )


class BatchSource:
    """Draws a process's share of each step's batch, as a function of the seed and the step.

    Args:
        parts: Parts of the run.
        options: Options of the run.
        accelerator: Says which share, and on which device.
    """

    def __init__(self, parts: TrainParts, options: TrainOptions, accelerator: Accelerator) -> None:
        self.parts, self.options = parts, options
        self.rank, self.device = accelerator.process_index, accelerator.device
        self.share = options.batch // accelerator.num_processes
        self.order = DataOrder(len(parts.labels), options.seed)
        # Without classes there is only the null class.
        self.labels = parts.labels if parts.classes else torch.full_like(parts.labels, parts.null)

    def draw(self, step: int) -> Batch:
        """This process's share of the batch of a step (0 = the first)."""
        parts, options, share = self.parts, self.options, self.share
        generator = step_generator(options.seed, step, self.rank, self.device)
        index = self.order(step * options.batch + self.rank * share, share)

        def chance(probability: float) -> Tensor:
            return torch.rand(share, generator=generator, device=self.device) < probability

        # A run goes on exactly only as long as the order of these draws stays.
        flip = chance(0.5 if options.flip else 0.0)
        labels = self.labels[index].to(self.device)
        labels = torch.where(chance(options.label_dropout), parts.null, labels)
        clean = parts.clean(index, flip, generator)
        noise = torch.randn(clean.shape, generator=generator, device=self.device)
        times = parts.objective.draw_times(share, generator)
        noisy, model_times = parts.objective.add_noise(clean, noise, times)
        kept = parts.token_drop.draw(share, generator)
        expected = parts.objective.expected_output(clean, noise, model_times)
        return Batch(noisy, model_times, labels, parts.token_drop.kept(expected, kept), kept)
