# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Training with and without each cache of the frozen part; ranks 1 and 2.

Passes are counted by hooks. Seconds are CPU seconds of the process, so that other processes on the
machine slow nothing down; on a GPU they are wall-clock seconds. The goal for features: a run of 90
epochs costs 1.2 passes over the images, and what the head costs alone.
"""

from __future__ import annotations

import copy
import os
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import diffusers
import torch
import torch.multiprocessing as mp
from common import SIZES, clock_of, describe, parser
from torch import Tensor, nn

from mmaselect.models import ASelecTDiT

EPOCHS = 90


class Counted(ASelecTDiT):
    """The backbone, with the images that go through encoder and transformer counted."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.counts = dict(encoder=0, transformer=0)
        for name, module in (('encoder', self.dit.codec), ('transformer', self.dit.transformer)):
            module.register_forward_pre_hook(self._counter(name))

    def _counter(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        counts = self.counts

        def count(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            counts[name] += len(inputs[0])

        return count


def train(
    features: Callable[[Tensor], Tensor], images: Tensor, epochs: int, batch_size: int, width: int
) -> None:
    """A linear probe: average pooling, a linear layer, SGD."""
    head = nn.Linear(width, 10).to(images.device)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1, momentum=0.9)
    labels = torch.arange(len(images), device=images.device) % 10
    for epoch in range(epochs):
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(epoch))
        for batch in order.split(batch_size):
            logits = head(features(batch).mean((2, 3)))
            optimizer.zero_grad()
            nn.functional.cross_entropy(logits, labels[batch]).backward()
            optimizer.step()


def features_table(args, clock: Callable[[], float]) -> None:
    """The DiT that ships with the package on 32 x 32 images."""
    options = dict(blocks=[3], timestep=50, noise='fixed')
    images = (torch.rand(args.images, 3, 32, 32) * 2 - 1).to(args.device)

    def build(cache: object = None) -> Counted:
        return Counted('mmaselect://dit_cifar10', cache=cache, **options).to(args.device)

    def seconds(call: Callable[[], None]) -> float:
        start = clock()
        call()
        return clock() - start

    plain = build()
    width = plain.out_channels[0]
    plain(images[: args.batch_size])
    held = torch.cat([plain(batch)[0] for batch in images.split(args.batch_size)])

    def one() -> None:
        for batch in images.split(args.batch_size):
            plain(batch)

    one_pass = statistics.median(seconds(one) for _ in range(3))

    def run(model: Counted, epochs: int) -> float:
        return seconds(
            lambda: train(lambda b: model(images[b])[0], images, epochs, args.batch_size, width)
        )

    head = seconds(lambda: train(lambda b: held[b], images, EPOCHS, args.batch_size, width))
    without = run(plain, 1) * EPOCHS
    print(
        f'{args.images} images, {EPOCHS} epochs. One pass over them: {one_pass:.2f} s; the head '
        f'alone, on features in memory: {head:.2f} s.\n'
    )
    print('| run | passes | seconds | without the head, in passes over the images | goal |')
    print('|---|---|---|---|---|')
    ratio = (without - head) / one_pass
    print(f'| no cache (one epoch, times {EPOCHS}) | {args.images * EPOCHS} | {without:.1f} | '
          f'{ratio:.1f} | |')  # fmt: skip
    for dtype in ('fp32', 'bf16'):
        with tempfile.TemporaryDirectory() as folder:
            cache = dict(kind='features', folder=folder, dtype=dtype)
            for name, goal in (('first run', 1.2), ('second run', 0.2)):
                model = build(cache)
                model.cache.store((32, 32), 50)  # hashes the weights, as a selection does
                took = run(model, EPOCHS)
                assert model.cache is not None
                model.cache.flush()
                ratio = (took - head) / one_pass
                print(f'| features in {dtype}, {name} | {model.counts["transformer"]} | '
                      f'{took:.1f} | {ratio:.2f} | {goal} |')  # fmt: skip
                del model


def latents_table(args, clock: Callable[[], float]) -> None:
    """DiT-XL/2 to block 13 with the VAE of Stable Diffusion, on small images."""
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        diffusers.DiTTransformer2DModel(
            in_channels=4, out_channels=8, sample_size=8, patch_size=2,
            **{**SIZES['XL'], 'num_layers': 14},
        ).save_pretrained(Path(folder, 'transformer'))  # fmt: skip
        diffusers.DDPMScheduler().save_pretrained(Path(folder, 'scheduler'))
        diffusers.AutoencoderKL(
            latent_channels=4, block_out_channels=(128, 256, 512, 512), layers_per_block=2,
            down_block_types=('DownEncoderBlock2D',) * 4, up_block_types=('UpDecoderBlock2D',) * 4,
        ).save_pretrained(Path(folder, 'vae'))  # fmt: skip
        images = (torch.rand(args.latent_images, 3, 64, 64) * 2 - 1).to(args.device)
        print('\n| epoch | encoder | transformer | seconds | of no cache |')
        print('|---|---|---|---|---|')
        floor = None
        for cache in (None, 'latents'):
            given = cache and dict(kind=cache, folder=str(Path(folder, 'cache')))
            model = Counted(folder, blocks=[13], timestep=50, cache=given).to(args.device).train()
            model(images)
            if given:
                model.cache.flush()
                model = Counted(folder, blocks=[13], timestep=50, cache=given).to(args.device)
                model.train()
            else:
                model.counts.update(encoder=0, transformer=0)
            start = clock()
            train(lambda b, m=model: m(images[b])[0], images, 2, args.latent_images, 1152)
            took = (clock() - start) / 2
            floor = floor or took
            print(
                f'| {"latents, once they are there" if given else "no cache"} | '
                f'{model.counts["encoder"] // 2} | {model.counts["transformer"] // 2} | '
                f'{took:.2f} | {took / floor:.2f} |'
            )


def _rank(rank: int, world: int, folder: str, args, queue) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        'gloo', init_method=f'file://{folder}/store{world}', rank=rank, world_size=world
    )
    torch.manual_seed(0)
    images = torch.rand(args.images, 3, 32, 32) * 2 - 1
    cache = dict(kind='features', folder=f'{folder}/cache{world}')
    model = Counted('mmaselect://dit_cifar10', blocks=[3], timestep=50, noise='fixed', cache=cache)
    clock, rows = clock_of('cpu'), []
    for epoch in range(3):
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(epoch))
        before, start = copy.copy(model.counts), clock()
        for batch in order[rank::world].split(args.batch_size):
            model(images[batch])
        model.cache.flush()
        rows.append((model.counts['transformer'] - before['transformer'], clock() - start))
        torch.distributed.barrier()
    queue.put((rank, rows))
    torch.distributed.destroy_process_group()


def ranks_table(args) -> None:
    """Who computes what, in three epochs that are shuffled differently."""
    print(
        '\n| ranks | passes, epoch 1 | epoch 2 | epoch 3 | CPU s of the slowest, epoch 1 | ratio |'
    )
    print('|---|---|---|---|---|---|')
    first = None
    context = mp.get_context('spawn')
    for world in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            queue = context.SimpleQueue()
            mp.start_processes(
                _rank, (world, folder, args, queue), nprocs=world, start_method='spawn'
            )
            ranks = [rows for _, rows in sorted(queue.get() for _ in range(world))]
        passes = [' + '.join(str(rows[epoch][0]) for rows in ranks) for epoch in range(3)]
        slowest = max(rows[0][1] for rows in ranks)
        first = first or slowest
        print(f'| {world} | {" | ".join(passes)} | {slowest:.2f} | {first / slowest:.2f} |')


def main() -> None:
    """Run and print."""
    arguments = parser(__doc__)
    arguments.add_argument('--images', type=int, default=1024)
    arguments.add_argument('--latent-images', type=int, default=4)
    arguments.set_defaults(batch_size=64)
    args = arguments.parse_args()
    os.environ.setdefault('OMP_NUM_THREADS', '1')
    print(describe())
    clock = clock_of(args.device)
    features_table(args, clock)
    latents_table(args, clock)
    if args.device == 'cpu':
        ranks_table(args)


if __name__ == '__main__':
    main()
