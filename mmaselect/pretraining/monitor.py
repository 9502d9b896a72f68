# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Looking at a network while it learns: grids of samples, and a linear probe of its queries."""

from __future__ import annotations

import torch
from diffusers import DiTTransformer2DModel

from mmaselect.pretraining.parts import TrainOptions, TrainParts
from mmaselect.pretraining.query_probe import as_frozen, probe_table
from mmaselect.pretraining.sampling import image_grid, sample_images

SAMPLES_PER_CLASS = 6
MAX_SAMPLED_CLASSES = 16


def is_due(step: int, interval: int) -> bool:
    """Whether a step is one of those at which something happens; an interval of 0 has none."""
    return bool(interval) and step % interval == 0


class Monitor:
    """Samples and probes a network, each at its interval and after the last step.

    Args:
        model: The network, in eval mode; the caller puts the weights in that are to be looked at.
        parts: Parts of the run.
        options: Options of the run.
    """

    def __init__(
        self, model: DiTTransformer2DModel, parts: TrainParts, options: TrainOptions
    ) -> None:
        self.model, self.parts, self.options = model, parts, options

    def is_due(self, step: int) -> bool:
        """Whether there is anything to do after this step."""
        return self._is_due(step, self.options.sample_every) or self._is_due(
            step, self.options.probe_every
        )

    def observe(self, step: int, images: int) -> None:
        """Do what is due, and write it to the run's folder.

        Args:
            step: Steps done.
            images: Images seen.
        """
        if self._is_due(step, self.options.sample_every):
            self._sample(step)
        if self._is_due(step, self.options.probe_every):
            self._probe(step, images)

    def _is_due(self, step: int, interval: int) -> bool:
        return is_due(step, interval) or (interval > 0 and step == self.options.steps)

    def _sample(self, step: int) -> None:
        null = self.parts.null
        shown = [*range(min(len(self.parts.classes), MAX_SAMPLED_CLASSES)), null]
        images = sample_images(
            self.model,
            self.parts.objective,
            torch.tensor(shown).repeat_interleave(SAMPLES_PER_CLASS),
            self.parts.vae,
            self.options.sample_steps,
            self.options.seed,
        )
        folder = self.parts.folder.path / 'samples'
        folder.mkdir(exist_ok=True)
        image_grid(images, SAMPLES_PER_CLASS).save(folder / f'step_{step:08d}.png')

    def _probe(self, step: int, images: int) -> None:
        probe_images = self.parts.probe_images
        if probe_images is None:
            raise ValueError('a probe (probe_every) needs images: give TrainParts probe_images')
        blocks = self.options.probe_blocks or range(1, self.model.config.num_layers, 2)
        dit = as_frozen(self.model, self.parts.objective, blocks)
        table = probe_table(dit, probe_images, self.options.probe_timesteps)
        self.parts.folder.log({'step': step, 'images': images, 'probe': table})
        best = max(table, key=lambda key: table[key])
        print(f'step {step}: linear probe {100 * table[best]:.1f} % ({best})', flush=True)
