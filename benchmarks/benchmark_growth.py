# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""How a pass grows: images, tokens, blocks, draws; and compiled blocks.

Each row is a ratio of seconds, and next to it that of the FLOPs, its floor or ceiling. Seconds are
CPU seconds of the process (wall-clock on a GPU), medians of rounds in which both take turns.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from common import clock_of, describe, median_ratio, paired_seconds, parser, save_dit
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mmaselect.models import ASelecTDiT


def flops(call: Callable[[], object]) -> int:
    """Floating-point operations of a call."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


@torch.no_grad()
def main() -> None:
    """Run and print."""
    arguments = parser(__doc__)
    arguments.add_argument('--no-compile', action='store_true', help='leave compiled blocks out')
    arguments.set_defaults(size='Ti', rounds=5)
    args = arguments.parse_args()
    print(describe())
    clock = clock_of(args.device)
    with tempfile.TemporaryDirectory() as folder:
        save_dit(Path(folder), args.size)

        def build(**options: object) -> ASelecTDiT:
            options = {**dict(blocks=[2], timestep=100, noise='fixed'), **options}
            return ASelecTDiT(folder, **options).to(args.device).eval()

        def batch(count: int, side: int = 32) -> Tensor:
            return (torch.rand(count, 3, side, side) * 2 - 1).to(args.device)

        def show(
            what: str,
            call: Callable[[], object],
            than: Callable[[], object],
            work: float | None = None,
        ) -> None:
            seconds = paired_seconds(dict(a=call, b=than), args.rounds, args.device, clock)
            ratio = median_ratio(seconds['a'], seconds['b'])
            work = flops(call) / flops(than) if work is None else work
            print(f'| {what} | {ratio:.2f} | {work:.2f} |', flush=True)

        plain, some = build(), batch(args.batch_size)
        print('| what, over what | seconds | FLOPs |')
        print('|---|---|---|')
        for count in (1, 4 * args.batch_size, 16 * args.batch_size):
            images = batch(count)
            show(
                f'{count} images, over {args.batch_size}',
                lambda i=images: plain(i),
                lambda: plain(some),
            )
        for side in (16, 64):
            images = batch(args.batch_size, side)
            show(
                f'{(side // 2) ** 2} tokens, over 256',
                lambda i=images: plain(i),
                lambda: plain(some),
            )
        for blocks in ([0], [1], [3], [0, 1, 2], [2, 2, 2, 2]):
            model = build(blocks=blocks)
            show(f'blocks {blocks}, over [2]', lambda m=model: m(some), lambda: plain(some))
        for draws in (2, 4):
            model = build(noise=dict(draws=draws))
            show(f'{draws} draws, over 1', lambda m=model: m(some), lambda: plain(some))
        fresh = build(noise='fresh')
        show('fresh noise, over fixed', lambda: fresh(some), lambda: plain(some))
        if not args.no_compile:
            model = build(compile=True)
            start = clock()
            found = model(some)[0]
            start = clock() - start
            show('compile=True, over False', lambda: model(some), lambda: plain(some), 1.0)
            error = (found - plain(some)[0]).abs().max() / found.abs().max()
            print(
                f'\nThe first pass of compiled blocks took {start:.1f} s; the largest difference '
                f'is {error:.1e} of the largest value.'
            )


if __name__ == '__main__':
    main()
