# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""A run that is told to stop saves a checkpoint first."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

import torch
import torch.distributed
from mmengine.dist import is_distributed, is_main_process
from mmengine.hooks import CheckpointHook, Hook
from mmengine.runner import EpochBasedTrainLoop, Runner

from mmaselect.datasets.seeded import PlaceSampler
from mmaselect.files import write_atomically
from mmaselect.logs import logger
from mmaselect.openmmlab.registries import HOOKS

SIGNALS = (signal.SIGTERM, signal.SIGINT)


@HOOKS.register_module()
class SaveOnStopHook(Hook):
    """Saves a checkpoint on SIGTERM (a cluster's preemption) or Ctrl-C, and ends the run.

    The iteration that runs is finished, the checkpoint written, what to do to go on is printed,
    and the process ends with the usual code, 128 plus the signal's number. A second signal ends it
    at once. Several processes agree on the iteration: each adds its own signal to a sum that
    travels while the next iteration runs, so none waits for another.

    A run that stopped within an epoch goes on within it if its sampler is a
    :class:`~mmaselect.datasets.seeded.PlaceSampler`.

    Args:
        how_to_go_on: Command that is printed after "To go on: ".
    """

    priority = 'LOWEST'  # after whatever else happens in an iteration

    def __init__(self, how_to_go_on: str = 'start the same command again, with --resume') -> None:
        self.how_to_go_on = how_to_go_on
        self._signal = 0
        self._due = 0  # agreed on, and to be followed at the end of the epoch
        self._process = os.getpid()
        self._handlers: dict[int, Any] = {}
        self._group: Any = None
        self._sum: tuple[torch.Tensor, Any] | None = None

    # -- signals ----------------------------------------------------------------------------------
    def _note_signal(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            # A worker that was forked off: the main process tells it when to end, and a second
            # signal (PyTorch's, to a worker that hangs) ends it.
            signal.signal(number, signal.SIG_DFL)
            return
        self._restore()
        self._signal = number
        # Not through Python's streams: the signal may have come while one is being written.
        os.write(
            2,
            f'{signal.Signals(number).name}: a checkpoint will be saved after this iteration. A '
            f'second signal ends the run at once\n'.encode(),
        )

    def _restore(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    # -- the run ----------------------------------------------------------------------------------
    def before_train(self, runner: Runner) -> None:
        self._signal, self._due, self._process = 0, 0, os.getpid()
        if threading.current_thread() is threading.main_thread():
            self._handlers = {
                number: signal.signal(number, self._note_signal) for number in SIGNALS
            }
        if is_distributed():
            self._group = torch.distributed.new_group(backend='gloo')
        self._go_on_within_the_epoch(runner)

    def after_train(self, runner: Runner) -> None:
        self._restore()
        if self._sum is not None:
            self._sum[1].wait()
            self._sum = None

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        number = self._agreed_signal()
        if not number:
            return
        # At the end of an epoch, hooks of the epoch come first: schedulers, the checkpoint.
        if self._is_by_epoch(runner) and batch_idx + 1 >= len(runner.train_dataloader):
            self._due = number
            return
        self._stop(runner, number, epoch=runner.epoch, iteration=runner.iter + 1)

    def after_train_epoch(self, runner: Runner) -> None:
        if self._due and self._is_by_epoch(runner):
            self._stop(runner, self._due, epoch=runner.epoch + 1, iteration=runner.iter)

    # -- agreeing ---------------------------------------------------------------------------------
    def _agreed_signal(self) -> int:
        """The signal that all processes stop for at this iteration; 0 for none."""
        if self._group is None:
            return self._signal
        before = 0
        if self._sum is not None:
            self._sum[1].wait()
            before = int(self._sum[0])
        self._start_sum()
        return before

    def _start_sum(self) -> None:
        flag = torch.tensor(self._signal)
        work = torch.distributed.all_reduce(
            flag, torch.distributed.ReduceOp.MAX, group=self._group, async_op=True
        )
        self._sum = (flag, work)

    # -- saving -----------------------------------------------------------------------------------
    @staticmethod
    def _is_by_epoch(runner: Runner) -> bool:
        return isinstance(runner.train_loop, EpochBasedTrainLoop)

    def _stop(self, runner: Runner, number: int, epoch: int, iteration: int) -> None:
        path = self._save(runner, epoch, iteration)
        self._restore()
        if is_main_process():
            logger.info(
                f'stopped by {signal.Signals(number).name} after iteration {iteration} of '
                f'{runner.max_iters}; the checkpoint is {path}. To go on: {self.how_to_go_on}',
            )
        if self._group is not None:
            torch.distributed.barrier()  # no process leaves while the checkpoint is written
            torch.distributed.destroy_process_group()
        raise SystemExit(128 + number)

    @staticmethod
    def _save(runner: Runner, epoch: int, iteration: int) -> str:
        """Save a checkpoint, unless the run's own hook has just done so; its path."""
        own = next((hook for hook in runner.hooks if isinstance(hook, CheckpointHook)), None)
        folder = getattr(own, 'out_dir', None) or runner.work_dir
        name = f'iter_{iteration}.pth'
        last = getattr(own, 'last_ckpt', None)
        at_epoch = epoch * len(runner.train_dataloader) == iteration
        if last and os.path.basename(last) in (name, f'epoch_{epoch}.pth' if at_epoch else name):
            return last
        backend = getattr(own, 'backend_args', None)
        runner.save_checkpoint(
            folder,
            name,
            meta=dict(epoch=epoch, iter=iteration),
            by_epoch=False,
            backend_args=backend,
        )
        path = os.path.join(folder, name)
        if is_main_process():
            write_atomically(os.path.join(runner.work_dir, 'last_checkpoint'), path)
        return path

    def _go_on_within_the_epoch(self, runner: Runner) -> None:
        if not self._is_by_epoch(runner):
            return
        loader = runner.train_dataloader
        done = runner.iter - runner.epoch * len(loader)
        if not 0 < done < len(loader):
            return
        if isinstance(loader.sampler, PlaceSampler) and loader.batch_size:
            loader.sampler.start_at(done * loader.batch_size)
            runner.logger.info(f'going on after {done} of {len(loader)} batches of the epoch')
        else:
            runner.logger.warning(
                f'the run stopped after {done} of {len(loader)} batches of this epoch, and its '
                f'sampler cannot go on there: they are seen a second time'
            )
