# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Training with and without each cache of the frozen part; ranks 1 and 2.

Passes are counted by hooks. Seconds are CPU seconds of the process, so that other processes on the
machine slow nothing down; on a GPU they are wall-clock seconds. The goal for features: a run of 90
epochs costs 1.2 passes over the images, and what the head costs alone.
"""

from __future__ import annotations

import contextlib
import copy
import io
import os
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest import mock

import diffusers
import numpy as np
import torch
import torch.multiprocessing as mp
from common import SIZES, clock_of, describe, parser
from PIL import Image
from torch import Tensor, nn

from mmaselect.models import ASelecTDiT
from mmaselect.models.backbones.frozen_cache import image_keys
from mmaselect.row_checks import RowReader

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


def decoded(files: Sequence[io.BytesIO]) -> Tensor:
    """Image files as a batch in [-1, 1]."""
    pixels = np.stack([np.asarray(Image.open(file)) for file in files])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2) / 127.5 - 1


def checks_table(args, clock: Callable[[], float]) -> None:
    """What hashing costs an epoch that is read from the cache, with a 1 x 1 convolution as head.

    Images are in memory, so nothing hides it, or each is decoded from PNG. A row is checked when it
    is first read: by the first epoch of a process.
    """
    files = [io.BytesIO() for _ in range(args.images)]
    chance = np.random.default_rng(0)
    for file in files:
        Image.fromarray(chance.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(file, 'png')
    images = decoded(files)
    labels = torch.arange(args.images * 64).view(-1, 8, 8) % 10
    options = dict(blocks=[3], timestep=50, noise='fixed')
    seconds: dict[tuple[str, int, bool], list[float]] = {}

    with tempfile.TemporaryDirectory() as folder:
        options['cache'] = dict(kind='features', folder=folder)

        def epochs(name: str, loading: bool) -> None:
            model = ASelecTDiT('mmaselect://dit_cifar10', **options)
            model.cache.store((32, 32), 50)  # hashes the weights, as a selection does
            head = nn.Conv2d(model.out_channels[0], 10, 1)
            optimizer = torch.optim.SGD(head.parameters(), lr=0.1)
            for epoch in range(2):
                start = clock()
                for rows in torch.arange(len(images)).split(args.batch_size):
                    batch = decoded([files[row] for row in rows]) if loading else images[rows]
                    loss = nn.functional.cross_entropy(head(model(batch)[0]), labels[rows])
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                seconds.setdefault((name, epoch, loading), []).append(clock() - start)
            model.cache.flush()

        epochs('computed', False)
        for repeat in range(args.repeats):
            for name in ('checked', 'unchecked')[:: 1 if repeat % 2 else -1]:
                with contextlib.ExitStack() as stack:
                    if name == 'unchecked':
                        patched = mock.patch.object(RowReader, 'is_whole', lambda *_: True)
                        stack.enter_context(patched)
                    epochs(name, False)
                    epochs(name, True)
    hashed = args.images / 1000
    start = clock()
    for rows in torch.arange(len(images)).split(args.batch_size):
        image_keys(images[rows])
    keys = (clock() - start) / hashed
    print('\n| epoch from the cache | ms for 1,000 images | of no check | ... read from PNG | |')
    print('|---|---|---|---|---|')
    for name, epoch, words in (
        ('unchecked', 0, 'first, rows not checked'),
        ('checked', 0, 'first'),
        ('checked', 1, 'second'),
    ):
        cells = []
        for loading in (False, True):  # other processes only ever add to a time: the least counts
            took, floor = (
                min(seconds[key]) for key in ((name, epoch, loading), ('unchecked', 0, loading))
            )
            cells += [f'{1000 * took / hashed:.1f}', f'{took / floor:.3f}']
        print(f'| {words} | {" | ".join(cells)} |')
    print(f'\nHashing the images themselves: {1000 * keys:.1f} ms for 1,000 images.')


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
    arguments.add_argument('--repeats', type=int, default=15, help='of an epoch with checks')
    arguments.add_argument('--checks-only', action='store_true', help='no other table')
    arguments.set_defaults(batch_size=64)
    args = arguments.parse_args()
    os.environ.setdefault('OMP_NUM_THREADS', '1')
    print(describe())
    clock = clock_of(args.device)
    checks_table(args, clock)
    if args.checks_only:
        return
    features_table(args, clock)
    latents_table(args, clock)
    if args.device == 'cpu':
        ranks_table(args)


if __name__ == '__main__':
    main()
