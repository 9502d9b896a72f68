# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""The training loop."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from diffusers import DiTTransformer2DModel
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim import Optimizer
from tqdm.auto import tqdm

from mmaselect.pretraining.clean import LatentSource, PixelSource
from mmaselect.pretraining.export import save_pipeline
from mmaselect.pretraining.objective import Objective
from mmaselect.pretraining.query_probe import ProbeImages, as_frozen, probe_table
from mmaselect.pretraining.randomness import DataOrder, step_generator
from mmaselect.pretraining.run_folder import RunFolder
from mmaselect.pretraining.sampling import image_grid, sample_images
from mmaselect.pretraining.tokens import TokenDrop

SAMPLES_PER_CLASS = 6
MAX_SAMPLED_CLASSES = 16


@dataclass(frozen=True)
class TrainOptions:
    """How to train. Intervals are in steps; 0 switches a thing off.

    Attributes:
        steps: Steps of the whole run.
        batch: Images of one step, over all processes.
        accumulate: Parts that a process cuts its share of a batch into, to save memory.
        label_dropout: Share of the labels that become the null class.
        flip: Mirror half of the images.
        grad_clip: Largest norm of the gradient.
        ema_decay: Largest decay of the averaged weights.
        seed: Seed of the weights, the data order and all noise.
        log_every: Interval of the log.
        save_every: Interval of the checkpoints.
        sample_every: Interval of the sample grids.
        sample_steps: Denoising steps of a sample.
        probe_every: Interval of the linear probe.
        probe_blocks: Blocks that it reads; None for every second one.
        probe_timesteps: Timesteps that it reads them at.
        max_minutes: Save and stop after so long; None for no limit.
    """

    steps: int
    batch: int
    accumulate: int = 1
    label_dropout: float = 0.1
    flip: bool = True
    grad_clip: float = 1.0
    ema_decay: float = 0.9999
    seed: int = 0
    log_every: int = 20
    save_every: int = 500
    sample_every: int = 2000
    sample_steps: int = 50
    probe_every: int = 0
    probe_blocks: Sequence[int] | None = None
    probe_timesteps: Sequence[int] = (25, 100)
    max_minutes: float | None = None


def attention_backend(device: torch.device) -> AbstractContextManager:
    """On a CPU, attention by plain products: on few tokens twice as fast as the fused kernel."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == 'cpu' else nullcontext()


class Trainer:
    """Trains a DiT, and keeps its folder in order.

    Args:
        accelerator: Says where and in which precision.
        model: The untrained transformer.
        optimizers: Of all its parameters.
        schedule: Factor of the learning rates, by step.
        objective: What to predict.
        clean: Clean samples.
        labels: (N,), their classes.
        classes: Class names; empty for a set without.
        folder: Where everything is written.
        options: How to train.
        token_drop: Hooked to ``model``.
        probe_images: For the linear probe.
        vae: Of the latents, if any.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: DiTTransformer2DModel,
        optimizers: Sequence[Optimizer],
        schedule: Callable[[int], float],
        objective: Objective,
        clean: PixelSource | LatentSource,
        labels: Tensor,
        classes: Sequence[str],
        folder: RunFolder,
        options: TrainOptions,
        token_drop: TokenDrop,
        probe_images: ProbeImages | None = None,
        vae: nn.Module | None = None,
    ) -> None:
        self.accelerator, self.device = accelerator, accelerator.device
        self.options, self.folder = options, folder
        self.schedule, self.objective, self.token_drop = schedule, objective, token_drop
        self.clean, self.classes, self.vae = clean, tuple(classes), vae
        self.probe_images = probe_images
        self.null = model.config.num_embeds_ada_norm
        # Without classes there is only the null class.
        self.labels = labels if classes else torch.full_like(labels, self.null)
        self.order = DataOrder(len(labels), options.seed)

        self.averaged = DiTTransformer2DModel.from_config(model.config).to(self.device).eval()
        self.plain = model.to(self.device).train()
        self.ema = EMAModel(self.plain.parameters(), decay=options.ema_decay, foreach=True)
        self.planned = [
            [{k: group[k] for k in ('initial_lr', 'weight_decay')} for group in o.param_groups]
            for o in optimizers
        ]
        self.model, *self.optimizers = accelerator.prepare(model, *optimizers)
        accelerator.register_for_checkpointing(self.ema)
        self.step, self.images, self.seconds = 0, 0, 0.0
        self._signal = 0

    def resume(self) -> bool:
        """Go back to the newest checkpoint; False if there is none."""
        state = self.folder.newest()
        if state is None:
            return False
        self.accelerator.load_state(str(state))
        self.ema.to(self.device)
        progress = self.folder.read_progress(state)
        self.step, self.images = progress['step'], progress['images']
        self.seconds = progress['seconds']
        # The optimizers' state brings back its old plan; the command line has the new one.
        for optimizer, groups in zip(self.optimizers, self.planned, strict=True):
            for group, planned in zip(optimizer.param_groups, groups, strict=True):
                group.update(planned)
        if self.accelerator.is_main_process:
            self.folder.forget_after(self.step)
        return True

    def train(self) -> bool:
        """Train to the last step.

        Returns:
            bool: Whether the last step was reached; if not, the time was up.

        Raises:
            SystemExit: After SIGTERM or SIGINT, once everything is saved.
        """
        options = self.options
        before = {s: signal.signal(s, self._on_signal) for s in (signal.SIGTERM, signal.SIGINT)}
        started, seconds_before = time.monotonic(), self.seconds
        bar = tqdm(
            total=options.steps,
            initial=self.step,
            disable=not (self.accelerator.is_main_process and sys.stderr.isatty()),
        )
        total, count, since = torch.zeros((), device=self.device), 0, time.monotonic()
        try:
            stop = False
            while self.step < options.steps and not stop:
                loss, norm, factor = self._step()
                total, count = total + loss, count + 1
                bar.update()
                now = time.monotonic()
                self.seconds = seconds_before + now - started
                over = bool(options.max_minutes) and now - started > 60 * options.max_minutes
                stop = self._any_rank(over or self._signal)
                last = stop or self.step == options.steps
                if last or _due(self.step, options.log_every):
                    rate = count * options.batch / (now - since)
                    self._log_loss(float(self._mean(total / count)), norm, factor, rate, bar)
                    total, count, since = torch.zeros_like(total), 0, time.monotonic()
                if last or _due(self.step, options.save_every):
                    self.save()
                # Looking at the model comes after saving it, and is left out on the way out.
                if not stop and self._look():
                    since = time.monotonic()
        finally:
            bar.close()
            for number, handler in before.items():
                signal.signal(number, handler)
        if self._signal:
            self.accelerator.print(f'stopped by signal {self._signal}, saved at step {self.step}')
            raise SystemExit(128 + self._signal)
        return self.step == options.steps

    def save(self) -> None:
        """Write a checkpoint, ``snapshot/`` (averaged weights as a pipeline) and ``loss.png``."""
        self.accelerator.wait_for_everyone()

        def write(state: Any) -> None:
            self.accelerator.save_state(str(state))
            self.accelerator.wait_for_everyone()

        progress = {'step': self.step, 'images': self.images, 'seconds': round(self.seconds, 1)}
        if self.accelerator.is_main_process:
            self.folder.save_state(self.step, progress, write)
            self.export('snapshot')
            self.folder.plot()
        else:
            write(self.folder.states / f'.step_{self.step:08d}')
        self.accelerator.wait_for_everyone()

    def export(self, name: str, dtype: torch.dtype = torch.float32) -> None:
        """Save the averaged weights as a pipeline folder of this name."""
        self._load_average()
        save_pipeline(
            self.folder.path / name, self.averaged, self.objective, self.classes, self.vae, dtype
        )

    def _on_signal(self, number: int, frame: Any) -> None:
        self._signal = number

    def _any_rank(self, stop: bool) -> bool:
        """Whether any process wants to stop: all must do so at the same step."""
        if self.accelerator.num_processes == 1:
            return bool(stop)
        flag = torch.tensor(float(bool(stop)), device=self.device)
        return bool(self.accelerator.reduce(flag, 'sum') > 0)

    def _mean(self, value: Tensor) -> Tensor:
        return self.accelerator.reduce(value, 'mean')

    def _draw(self) -> tuple[Tensor, ...]:
        """This process's share of the step's batch: all that is random is drawn here."""
        options, rank = self.options, self.accelerator.process_index
        generator = step_generator(options.seed, self.step, rank, self.device)
        share = options.batch // self.accelerator.num_processes
        index = self.order(self.step * options.batch + rank * share, share)

        def chance(probability: float) -> Tensor:
            return torch.rand(share, generator=generator, device=self.device) < probability

        flip = chance(0.5 if options.flip else 0.0)
        labels = self.labels[index].to(self.device)
        labels = torch.where(chance(options.label_dropout), self.null, labels)
        clean = self.clean(index, flip, generator)
        noise = torch.randn(clean.shape, generator=generator, device=self.device)
        times = self.objective.draw_times(share, generator)
        noisy, told = self.objective.add_noise(clean, noise, times)
        kept = self.token_drop.draw(share, generator)
        wanted = self.token_drop.kept(self.objective.wanted(clean, noise, told), kept)
        return (
            (noisy, told, labels, wanted) if kept is None else (noisy, told, labels, wanted, kept)
        )

    def _step(self) -> tuple[Tensor, Tensor, float]:
        """One step; returns loss, norm of the gradient and the factor of the learning rate."""
        accelerator, parts = self.accelerator, self.options.accumulate
        loss_sum = torch.zeros((), device=self.device)
        for i, (noisy, told, labels, wanted, *rest) in enumerate(
            zip(*(drawn.chunk(parts) for drawn in self._draw()), strict=True), start=1
        ):
            kept = rest[0] if rest else None
            waiting = i < parts
            with accelerator.no_sync(self.model) if waiting else nullcontext():
                with attention_backend(self.device):
                    self.token_drop.use(kept)
                    output = self.model(noisy, timestep=told, class_labels=labels).sample.float()
                    self.token_drop.use(None)
                loss = F.mse_loss(self.token_drop.answer(output, kept), wanted) / parts
                accelerator.backward(loss)
            loss_sum += loss.detach()
        norm = accelerator.clip_grad_norm_(self.model.parameters(), self.options.grad_clip)
        factor = self.schedule(self.step)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group['lr'] = group['initial_lr'] * factor
            optimizer.step()
            optimizer.zero_grad()
        self.ema.step(self.plain.parameters())
        self.step += 1
        self.images += self.options.batch
        return loss_sum, norm, factor

    def _log_loss(self, loss: float, norm: Tensor, factor: float, rate: float, bar: Any) -> None:
        if not self.accelerator.is_main_process:
            return
        record = {
            'step': self.step,
            'images': self.images,
            'seconds': round(self.seconds, 1),
            'loss': round(loss, 5),
            'grad_norm': round(float(norm), 4),
            'lr_factor': round(factor, 5),
            'images_per_second': round(rate, 1),
        }
        self.folder.log(record)
        text = f'loss {loss:.4f}, {rate:.0f} images/s'
        if bar.disable:
            print(f'step {self.step}/{self.options.steps}: {text}', flush=True)
        else:
            bar.set_postfix_str(text)

    def _look(self) -> bool:
        """Sample and probe where that is due; whether anything was done."""
        last = self.step == self.options.steps
        sample = self.options.sample_every and (last or _due(self.step, self.options.sample_every))
        probe = self.options.probe_every and (last or _due(self.step, self.options.probe_every))
        if self.accelerator.is_main_process and (sample or probe):
            self._load_average()
            with self.accelerator.autocast(), attention_backend(self.device):
                if sample:
                    self._sample()
                if probe:
                    self._probe()
        if sample or probe:
            self.accelerator.wait_for_everyone()
        return bool(sample or probe)

    def _load_average(self) -> None:
        self.ema.copy_to(self.averaged.parameters())

    def _sample(self) -> None:
        shown = [*range(min(len(self.classes), MAX_SAMPLED_CLASSES)), self.null]
        images = sample_images(
            self.averaged,
            self.objective,
            torch.tensor(shown).repeat_interleave(SAMPLES_PER_CLASS),
            self.vae,
            self.options.sample_steps,
            self.options.seed,
        )
        folder = self.folder.path / 'samples'
        folder.mkdir(exist_ok=True)
        image_grid(images, SAMPLES_PER_CLASS).save(folder / f'step_{self.step:08d}.png')

    def _probe(self) -> None:
        blocks = self.options.probe_blocks or range(1, self.averaged.config.num_layers, 2)
        dit = as_frozen(self.averaged, self.objective, blocks)
        table = probe_table(dit, self.probe_images, self.options.probe_timesteps)
        self.folder.log({'step': self.step, 'images': self.images, 'probe': table})
        best = max(table, key=table.get)
        print(f'step {self.step}: linear probe {100 * table[best]:.1f} % ({best})', flush=True)


def _due(step: int, interval: int) -> bool:
    return bool(interval) and step % interval == 0
