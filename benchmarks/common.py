# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""What the benchmarks share: a DiT of any size on disk, the machine in words, paired timings."""

from __future__ import annotations

import argparse
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import diffusers
import torch

#: DiT sizes of arXiv 2212.09748, table 1, with patch size 2 on 4-channel latents.
SIZES = {
    'Ti': dict(num_layers=4, num_attention_heads=3, attention_head_dim=32),  # ours, for sweeps
    'S': dict(num_layers=12, num_attention_heads=6, attention_head_dim=64),
    'B': dict(num_layers=12, num_attention_heads=12, attention_head_dim=64),
    'L': dict(num_layers=24, num_attention_heads=16, attention_head_dim=64),
    'XL': dict(num_layers=28, num_attention_heads=16, attention_head_dim=72),
}


def save_dit(folder: Path, size: str, latent_size: int = 32) -> Path:
    """Write a randomly initialized DiT pipeline without a VAE: speed does not depend on weights."""
    torch.manual_seed(0)
    transformer = diffusers.DiTTransformer2DModel(
        in_channels=3, out_channels=3, sample_size=latent_size, patch_size=2, **SIZES[size]
    )
    transformer.save_pretrained(folder / 'transformer')
    diffusers.DDPMScheduler(beta_schedule='linear').save_pretrained(folder / 'scheduler')
    return folder


def parser(description: str) -> argparse.ArgumentParser:
    """Arguments that all benchmarks take."""
    result = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument('--size', choices=SIZES, default='B', help='DiT size; default: B')
    result.add_argument('--batch-size', type=int, default=4)
    result.add_argument('--rounds', type=int, default=7, help='timed rounds; default: 7')
    result.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    return result


def describe() -> str:
    """The command and the machine, for the head of a table."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor()
    return (
        f'    python {shlex.join([Path(sys.argv[0]).as_posix(), *sys.argv[1:]])}\n\n'
        f'{name or platform.machine()}, {torch.get_num_threads()} threads, '
        f'torch {torch.__version__}, diffusers {diffusers.__version__}\n'
    )


def clock_of(device: str) -> Callable[[], float]:
    """A clock for a device: CPU seconds of this process, or wall-clock seconds of a GPU.

    With one thread, CPU seconds are those of a machine that does nothing else.
    """

    def synchronized() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return synchronized if device.startswith('cuda') else time.process_time


def paired_seconds(
    candidates: dict[str, Callable[[], object]],
    rounds: int,
    device: str,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each candidate in each round, in turn, after one round that is not counted.

    In turn, so that a machine whose speed drifts slows all of them alike.
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(rounds + 1):
        for name, call in candidates.items():
            if device.startswith('cuda'):
                torch.cuda.synchronize()
            start = clock()
            call()
            if device.startswith('cuda'):
                torch.cuda.synchronize()
            if turn:
                seconds[name].append(clock() - start)
    return seconds


def median_ratio(slow: list[float], fast: list[float]) -> float:
    """Median of the round-by-round ratios."""
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))
