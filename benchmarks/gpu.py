# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Memory and time of published models on a GPU, counted without one: writes ``docs/gpu.md``.

    python benchmarks/gpu.py            # print it
    python benchmarks/gpu.py --write    # write it

Models are built from their configs, without weights. FLOPs are counted on PyTorch's meta device;
memory on the fake CUDA device of the tests, whose tensors have a size and no values.
"""

from __future__ import annotations

import argparse
import gc
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from cost import flops, head_flops
from full_size import MODELS, FullSize, build

from mmaselect.launch.config import load_config
from mmaselect.selection.options import SelectionOptions
from mmaselect.selection.race import round_ends

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / 'tests'))
from fake_cuda import FakeCuda  # noqa: E402

PAGE = ROOT / 'docs' / 'gpu.md'
#: Dense products in 16 bits, in FLOP/s, from NVIDIA's data sheets; and the share that is used.
CARDS = {'A100': 312e12, 'H100': 989e12}
USED = 0.4
#: Training images of ADE20K, and the side at which our configs read them.
ADE20K, CROP = 20_210, 512
GIB = 2**30


@dataclass(frozen=True)
class Need:
    """What a model needs.

    Attributes:
        weights: Bytes of what is loaded for a selection with defaults: blocks to the default one,
            and the VAE's encoder.
        peak: Most bytes on the device in it, without those of the scores.
        selection: FLOPs of it, where no timestep is dropped.
        epoch: FLOPs of an epoch of its UperNet config on ADE20K; None without such a config.
        blocks: Deepest block of the two.
    """

    weights: int
    peak: int
    selection: int
    epoch: int | None
    blocks: tuple[int, int | None]


def pass_flops(model: FullSize, block: int, size: int) -> tuple[int, int, torch.Tensor]:
    """FLOPs of encoding an image and of reading it at a block, and the map."""
    dit = build(model, 'meta', lambda family: [block])
    image = torch.zeros(1, 3, size, size, device='meta')
    latent = dit.encode(image)
    key = (block, 'query')
    return (
        flops(lambda: dit.encode(image)),
        flops(lambda: dit.features(latent, 100, latent)),
        dit.features(latent, 100, latent)[key],
    )


def need(model: FullSize, options: SelectionOptions) -> Need:
    """Count one model."""
    with FakeCuda() as device:
        dit = build(model, 'cuda')
        gc.collect()
        weights, block = dit.weight_bytes, dit.blocks[0]
        device.forget()
        images = torch.zeros(options.batch_size, 3, model.native, model.native, device='cuda')
        views = torch.stack([dit.encode(images) for _ in range(2)])
        del images
        for latent in views:
            kept = dit.features(latent, 100, torch.zeros_like(latent))
        peak = device.peak
        del dit, views, latent, kept
    gc.collect()
    encoder, read, _ = pass_flops(model, block, model.native)
    deciding, *others = options.criteria.values()
    timesteps = len(options.grid(1000).coarse)
    number = options.first_images
    first = round_ends(deciding, number, race=True)[0]
    draws = max(criterion.draws for criterion in others)
    passes = timesteps * (number * deciding.views + first * draws)
    selection = passes * read + number * (deciding.views + 1) * encoder
    epoch, deepest = None, None
    if model.heads is not None:
        config = load_config(ROOT / f'configs/_base_/models/aselect_{model.heads}_upernet.py')
        deepest = max(config.model.backbone.blocks)
        encoder, read, found = pass_flops(model, deepest, CROP)
        epoch = ADE20K * (encoder + read + 3 * head_flops(found.float())['UperNet'])
    return Need(weights, peak, selection, epoch, (block, deepest))


def minutes(work: float | None, card: str) -> str:
    """Minutes of a piece of work on a card."""
    if work is None:
        return '-'
    found = work / (CARDS[card] * USED) / 60
    return f'{found:.1f}' if found < 10 else f'{found:,.0f}'


def table(needs: dict[FullSize, Need], options: SelectionOptions) -> str:
    """The page."""
    cards = ' and '.join(f'{rate / 1e12:.0f} TFLOP/s ({card})' for card, rate in CARDS.items())
    lines = [
        '# What a GPU needs',
        '',
        '**Counted, not measured.** No GPU was at hand: nothing on this page was run on one.',
        'Models are built from their published configs, without weights. `FlopCounterMode` of',
        'PyTorch counts the work, and fake CUDA tensors of true size count the memory, with fused',
        'attention. `python benchmarks/gpu.py --write` writes the page;',
        '[`mmaselect verify MODEL`](verified.md) measures a model where there is a GPU.',
        '',
        '## A selection with defaults',
        '',
        f'{options.first_images} images at native size, '
        f'{len(options.grid(1000).coarse)} timesteps, batches of {options.batch_size}, one block,',
        'in 16 bits. The work is that of all timesteps: a race that drops some takes less, a pick',
        'that is undecided takes further images. Weights are those that are loaded: the blocks up',
        "to the default one, and the VAE's encoder. The peak has the weights in it, but not what",
        'PyTorch and CUDA take for themselves, which is a gigabyte or more.',
        f'Minutes take {USED:.0%} of {cards}.',
        '',
        '| model | pixels | block | precision | weights, GiB | peak, GiB | PFLOP | '
        + ' | '.join(f'minutes, {card}' for card in CARDS)
        + ' |',
        '|' + '---|' * (7 + len(CARDS)),
    ]
    for model, found in needs.items():
        times = ' | '.join(minutes(found.selection, card) for card in CARDS)
        lines.append(
            f'| `{model.name}` | {model.native} | {found.blocks[0]} | '
            f'{str(model.dtype).removeprefix("torch.")} | {found.weights / GIB:.1f} | '
            f'{found.peak / GIB:.1f} | {found.selection / 1e15:,.1f} | {times} |'
        )
    lines += [
        '',
        'The peak is that of the VAE, which gets about 4 megapixels at a time. For a smaller peak',
        'lower `batch_size` or `image_size` of the selection.',
        '',
        '## An epoch of the reference config',
        '',
        f'UperNet on ADE20K ({ADE20K:,} images of {CROP} pixels) on one card: the frozen part once',
        'and the head three times, forward and backward. Loading and decoding are not counted.',
        '',
        '| model | deepest block | PFLOP | '
        + ' | '.join(f'minutes, {card}' for card in CARDS)
        + ' |',
        '|' + '---|' * (3 + len(CARDS)),
    ]
    for model, found in needs.items():
        if found.epoch is not None:
            times = ' | '.join(minutes(found.epoch, card) for card in CARDS)
            lines.append(
                f'| `{model.name}` | {found.blocks[1]} | {found.epoch / 1e15:,.1f} | {times} |'
            )
    lines += [
        '',
        '[What an image costs](cost.md) has the parts, and what a cache saves.',
    ]
    return '\n'.join(lines) + '\n'


def main() -> None:
    """Count, and print or write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--write', action='store_true', help='write docs/gpu.md')
    write = parser.parse_args().write
    options = SelectionOptions()
    page = table({model: need(model, options) for model in MODELS}, options)
    if write:
        PAGE.write_text(page, encoding='utf-8')
    else:
        print(page, end='')


if __name__ == '__main__':
    main()
