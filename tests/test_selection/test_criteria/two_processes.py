# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Two processes of one group, on this machine."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import multiprocessing


@contextmanager
def member_of_two(rank: int, folder: str) -> Iterator[None]:
    """Be one of two processes that meet in a folder."""
    torch.set_num_threads(1)
    dist.init_process_group(
        'gloo',
        init_method=f'file://{folder}/rendezvous',
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=60),
    )
    yield
    dist.destroy_process_group()


def run_two(function: Callable[..., None], folder: Path, *args: object) -> None:
    """Call ``function(rank, folder, *args)`` in two processes, and wait for them."""
    # Forked as data loader workers are, where that is safe: importing torch again takes long.
    multiprocessing.start_processes(
        function,
        args=(str(folder), *args),
        nprocs=2,
        start_method='fork' if sys.platform == 'linux' else 'spawn',
    )
