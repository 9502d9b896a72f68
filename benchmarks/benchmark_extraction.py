# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Features of block k: ours, against the full forward pass with a hook that everybody writes.

Prints, for several k, the speed-up and the floor that it is held to (0.95 of the FLOP ratio), then
what the backbone costs over the bare truncated pass (at most 3 %), the memory of the frozen weights
over that of the needed blocks (at most 1.05) and a checkpoint's bytes beyond its head (under 1 MB).
"""

from __future__ import annotations

import io
import statistics
import tempfile
from pathlib import Path

import diffusers
import torch
from common import describe, median_ratio, paired_seconds, parser, save_dit
from torch.utils.flop_counter import FlopCounterMode

from mmaselect.diffusion import FrozenDiT
from mmaselect.models import ASelecTDiT

TIMESTEP = 100


def flops(call) -> int:
    """Floating-point operations of a call."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def weight_bytes(module: torch.nn.Module) -> int:
    """Bytes of parameters and buffers."""
    return sum(t.numel() * t.element_size() for t in [*module.parameters(), *module.buffers()])


@torch.no_grad()
def main() -> None:
    """Run and print."""
    args = parser(__doc__).parse_args()
    print(describe())
    with tempfile.TemporaryDirectory() as folder:
        save_dit(Path(folder), args.size)
        stock = diffusers.DiTTransformer2DModel.from_pretrained(folder, subfolder='transformer')
        stock.eval().to(args.device)
        scheduler = diffusers.DDPMScheduler.from_pretrained(folder, subfolder='scheduler')
        images = (torch.rand(args.batch_size, 3, 32, 32) * 2 - 1).to(args.device)
        noise = torch.randn_like(images)
        steps = torch.full((args.batch_size,), TIMESTEP, device=args.device)
        labels = torch.full_like(steps, 1000)
        depth = len(stock.transformer_blocks)

        print('| block k of L | full pass, ms | ours, ms | speed-up | FLOP ratio | floor | holds |')
        print('|---|---|---|---|---|---|---|')
        for block in (depth // 4, depth // 2, 3 * depth // 4):
            caught: dict[str, torch.Tensor] = {}
            handle = stock.transformer_blocks[block].attn1.to_q.register_forward_hook(
                lambda module, inputs, output, caught=caught: caught.update(query=output)
            )

            def full() -> torch.Tensor:
                noisy = scheduler.add_noise(images, noise, steps)
                stock(noisy, timestep=steps, class_labels=labels)
                return caught['query']  # noqa: B023 (called before the next block)

            dit = FrozenDiT.from_pretrained(folder, blocks=block).to(args.device)

            def ours(dit: FrozenDiT = dit, block: int = block) -> torch.Tensor:
                return dit.features(images, TIMESTEP, noise)[block, 'query']

            same = torch.equal(ours().flatten(2).mT, full())
            assert same or args.device != 'cpu', 'not the same features'
            seconds = paired_seconds(dict(full=full, ours=ours), args.rounds, args.device)
            speed_up = median_ratio(seconds['full'], seconds['ours'])
            ratio = flops(full) / flops(ours)
            full_ms, ours_ms = (1000 * statistics.median(seconds[n]) for n in ('full', 'ours'))
            holds = 'yes' if speed_up >= 0.95 * ratio else 'NO'
            print(
                f'| {block} of {depth} | {full_ms:.1f} | {ours_ms:.1f} | {speed_up:.2f} | '
                f'{ratio:.2f} | {0.95 * ratio:.2f} | {holds} |'
            )
            handle.remove()

        block = depth // 2
        dit = FrozenDiT.from_pretrained(folder, blocks=block).to(args.device)
        backbone = ASelecTDiT(folder, blocks=block, timestep=TIMESTEP, noise='fixed')
        backbone = backbone.to(args.device).eval()

        def bare() -> torch.Tensor:
            noisy = scheduler.add_noise(images, noise, steps)
            hook = truncated.transformer_blocks[block].attn1.to_q.register_forward_hook(stop)
            try:
                truncated(noisy, timestep=steps, class_labels=labels)
            except StopIteration:
                pass
            finally:
                hook.remove()

        def stop(module, inputs, output) -> None:
            raise StopIteration

        truncated = dit.transformer
        seconds = paired_seconds(
            dict(backbone=lambda: backbone(images), bare=bare), args.rounds * 3, args.device
        )
        overhead = median_ratio(seconds['backbone'], seconds['bare']) - 1

        needed = weight_bytes(stock.pos_embed) + sum(
            weight_bytes(b) for b in stock.transformer_blocks[: block + 1]
        )
        resident = weight_bytes(backbone.dit)
        model = torch.nn.Sequential(backbone, torch.nn.Conv2d(backbone.out_channels[0], 150, 1))
        sizes = []
        for part in (model.state_dict(), model[1].state_dict()):
            buffer = io.BytesIO()
            torch.save(part, buffer)
            sizes.append(buffer.tell())
        print()
        print('| what | measured | ceiling | holds |')
        print('|---|---|---|---|')
        for name, value, ceiling, unit in (
            ('backbone over the bare truncated pass', 100 * overhead, 3.0, '%'),
            ('frozen weights over those of the needed blocks', resident / needed, 1.05, 'x'),
            ('checkpoint beyond its head', (sizes[0] - sizes[1]) / 1e6, 1.0, 'MB'),
        ):
            holds = 'yes' if value <= ceiling else 'NO'
            print(f'| {name} | {value:.3f} {unit} | {ceiling} {unit} | {holds} |')


if __name__ == '__main__':
    main()
