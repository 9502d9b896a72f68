# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""The training loop."""

from __future__ import annotations

import sys
import time
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from diffusers import DiTTransformer2DModel
from diffusers.training_utils import EMAModel
from torch import Tensor
from tqdm.auto import tqdm

from mmaselect.pretraining.attention import attention_backend
from mmaselect.pretraining.batches import BatchSource
from mmaselect.pretraining.export import save_pipeline
from mmaselect.pretraining.monitor import Monitor, is_due
from mmaselect.pretraining.parts import TrainOptions, TrainParts
from mmaselect.pretraining.stop_request import StopRequest


class Trainer:
    """Trains a DiT, and keeps its folder in order.

    Args:
        accelerator: Says where and in which precision.
        parts: Network, data and folder of the run.
        options: How to train.

    Attributes:
        step (int): Steps done.
        images (int): Images seen.
        seconds (float): Time taken, earlier parts of a resumed run included.
    """

    def __init__(self, accelerator: Accelerator, parts: TrainParts, options: TrainOptions) -> None:
        self.accelerator, self.device = accelerator, accelerator.device
        self.parts, self.options = parts, options
        self.batches = BatchSource(parts, options, accelerator)
        self.averaged = DiTTransformer2DModel.from_config(parts.model.config)
        self.averaged = self.averaged.to(self.device).eval()
        self.monitor = Monitor(self.averaged, parts, options)
        self.plain = parts.model.to(self.device).train()
        self.ema = EMAModel(self.plain.parameters(), decay=options.ema_decay, foreach=True)
        self.planned = [
            [{k: group[k] for k in ('initial_lr', 'weight_decay')} for group in o.param_groups]
            for o in parts.optimizers
        ]
        self.model, *self.optimizers = accelerator.prepare(parts.model, *parts.optimizers)
        accelerator.register_for_checkpointing(self.ema)
        self.step, self.images, self.seconds = 0, 0, 0.0

    def resume(self) -> bool:
        """Go back to the newest checkpoint; False if there is none.

        Raises:
            ValueError: If the checkpoint is damaged, or holds objects that could run code.
        """
        folder = self.parts.folder
        state = folder.newest()
        if state is None:
            return False
        folder.load_state(state, self.accelerator.load_state)
        self.ema.to(self.device)
        progress = folder.read_progress(state)
        self.step, self.images = progress['step'], progress['images']
        self.seconds = progress['seconds']
        # The optimizers' state brings back its old plan; the command line has the new one.
        for optimizer, groups in zip(self.optimizers, self.planned, strict=True):
            for group, planned in zip(optimizer.param_groups, groups, strict=True):
                group.update(planned)
        if self.accelerator.is_main_process:
            folder.forget_after(self.step)
        return True

    def train(self) -> bool:
        """Train to the last step.

        Returns:
            bool: Whether the last step was reached; if not, the time was up.

        Raises:
            SystemExit: After SIGTERM or SIGINT, once everything is saved.
        """
        options = self.options
        started, seconds_before = time.monotonic(), self.seconds
        bar = tqdm(
            total=options.steps,
            initial=self.step,
            disable=not (self.accelerator.is_main_process and sys.stderr.isatty()),
        )
        total, count, since = torch.zeros((), device=self.device), 0, time.monotonic()
        with bar, StopRequest(self.accelerator, options.max_minutes) as request:
            stop = False
            while self.step < options.steps and not stop:
                loss, norm, factor = self._train_step()
                total, count = total + loss, count + 1
                bar.update()
                now = time.monotonic()
                self.seconds = seconds_before + now - started
                stop = request.was_made()
                last = stop or self.step == options.steps
                if last or is_due(self.step, options.log_every):
                    rate = count * options.batch / (now - since)
                    mean = self.accelerator.reduce(total / count, 'mean')
                    self._log_step(float(mean), norm, factor, rate, bar)
                    total, count, since = torch.zeros_like(total), 0, time.monotonic()
                if last or is_due(self.step, options.save_every):
                    self.save()
                # Looking at the network comes after saving it, and is left out on the way out.
                if not stop and self.monitor.is_due(self.step):
                    self._observe_average()
                    since = time.monotonic()
        if request.signal_number:
            self.accelerator.print(
                f'stopped by signal {request.signal_number}, saved at step {self.step}'
            )
            raise SystemExit(128 + request.signal_number)
        return self.step == options.steps

    def save(self) -> None:
        """Write a checkpoint, ``snapshot/`` (averaged weights as a pipeline) and ``loss.png``."""
        self.accelerator.wait_for_everyone()
        folder = self.parts.folder

        def write(state: Any) -> None:
            self.accelerator.save_state(str(state))
            self.accelerator.wait_for_everyone()

        progress = {'step': self.step, 'images': self.images, 'seconds': round(self.seconds, 1)}
        if self.accelerator.is_main_process:
            folder.save_state(self.step, progress, write)
            self.export('snapshot')
            folder.plot()
        else:
            write(folder.states / f'.step_{self.step:08d}')
        self.accelerator.wait_for_everyone()

    def export(self, name: str, dtype: torch.dtype = torch.float32) -> None:
        """Save the averaged weights as a pipeline folder of this name."""
        self._load_average()
        parts = self.parts
        save_pipeline(
            parts.folder.path / name,
            self.averaged,
            parts.objective,
            parts.classes,
            parts.vae,
            dtype,
        )

    def _load_average(self) -> None:
        self.ema.copy_to(self.averaged.parameters())

    def _observe_average(self) -> None:
        if self.accelerator.is_main_process:
            self._load_average()
            with self.accelerator.autocast(), attention_backend(self.device):
                self.monitor.observe(self.step, self.images)
        self.accelerator.wait_for_everyone()

    def _train_step(self) -> tuple[Tensor, Tensor, float]:
        """One step; returns loss, norm of the gradient and the factor of the learning rate."""
        accelerator, parts = self.accelerator, self.options.accumulate
        token_drop = self.parts.token_drop
        loss_sum = torch.zeros((), device=self.device)
        for i, batch in enumerate(self.batches.draw(self.step).split(parts), start=1):
            waiting = i < parts
            with accelerator.no_sync(self.model) if waiting else nullcontext():
                with attention_backend(self.device):
                    token_drop.use(batch.kept)
                    output = self.model(
                        batch.noisy, timestep=batch.model_times, class_labels=batch.labels
                    ).sample.float()
                    token_drop.use(None)
                predicted = token_drop.output_tokens(output, batch.kept)
                loss = F.mse_loss(predicted, batch.expected) / parts
                accelerator.backward(loss)
            loss_sum += loss.detach()
        norm = accelerator.clip_grad_norm_(self.model.parameters(), self.options.grad_clip)
        factor = self.parts.schedule(self.step)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group['lr'] = group['initial_lr'] * factor
            optimizer.step()
            optimizer.zero_grad()
        self.ema.step(self.plain.parameters())
        self.step += 1
        self.images += self.options.batch
        return loss_sum, norm, factor

    def _log_step(self, loss: float, norm: Tensor, factor: float, rate: float, bar: Any) -> None:
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
        self.parts.folder.log(record)
        text = f'loss {loss:.4f}, {rate:.0f} images/s'
        if bar.disable:
            print(f'step {self.step}/{self.options.steps}: {text}', flush=True)
        else:
            bar.set_postfix_str(text)
