# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
r"""Four maps for a segmentation head: what per-pixel probes of single blocks and of four find.

The maps of four blocks are joined along their channels: what a linear head on all of them reads.

Example:
  python benchmarks/four_blocks.py --data-root data/camvid11 --timestep 0 \
      --join 1,2,3,4:query 2,3,4,5:output
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.registry import init_default_scope
from torch import Tensor

from mmaselect.analysis.encoded import EncodedImages
from mmaselect.analysis.linear_probe import ProbeOptions
from mmaselect.analysis.search import SegmentationSearch
from mmaselect.diffusion import FrozenDiT, TapKey
from mmaselect.images.labeled import LabeledImages
from mmaselect.openmmlab.dataset_images import build_dataset
from mmaselect.openmmlab.labeled_images import DatasetLabels
from mmaselect.terminal.tables import markdown_table


class Joined:
    """A model with further maps: several of its own, joined along their channels.

    Args:
        dit: The model.
        groups: Name of a joined map to the (block, feature) that it is made of.
    """

    def __init__(self, dit: FrozenDiT, groups: dict[str, list[TapKey]]) -> None:
        self.dit, self.groups = dit, groups
        self.keys = (*dit.keys, *((-1, name) for name in groups))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.dit, name)

    def features(self, latent: Tensor, timestep: int, noise: Tensor) -> dict[TapKey, Tensor]:
        """Maps of the model, and the joined ones."""
        maps = self.dit.features(latent, timestep, noise)
        joined = {
            (-1, name): torch.cat([maps[tap] for tap in taps], 1)
            for name, taps in self.groups.items()
        }
        return {**maps, **joined}


def read_group(text: str) -> list[TapKey]:
    """``1,2,3,4:query`` as (block, feature)."""
    blocks, _, feature = text.partition(':')
    return [(int(block), feature) for block in blocks.split(',')]


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--data-root', type=Path, default=Path('data/camvid11'))
    parser.add_argument('--pretrained', default='mmaselect://dit_cifar10')
    parser.add_argument('--timestep', type=int, default=0)
    parser.add_argument('--join', nargs='+', default=['1,2,3,4:query'], metavar='BLOCKS:FEATURE')
    parser.add_argument('--image-size', type=int, nargs=2, default=(96, 128))
    parser.add_argument('--num-train', type=int, default=100)
    parser.add_argument('--num-test', type=int, default=60)
    options = parser.parse_args(argv)
    init_default_scope('mmseg')
    groups = {text: read_group(text) for text in options.join}
    taps = [tap for group in groups.values() for tap in group]
    blocks, features = (sorted({tap[place] for tap in taps}) for place in (0, 1))
    dit = FrozenDiT.from_pretrained(options.pretrained, blocks=blocks, feature=features)
    model: Any = Joined(dit, groups)

    def images(split: str, count: int, first: int) -> EncodedImages:
        folders = dict(img_path=f'images/{split}', seg_map_path=f'annotations/{split}')
        dataset = build_dataset(
            dict(
                type='mmaselect.CamVidDataset',
                data_root=str(options.data_root),
                data_prefix=folders,
            )
        )
        source = DatasetLabels(dataset, 'segmentation')
        labeled = LabeledImages(source, tuple(options.image_size), count, 0)
        return EncodedImages(model, labeled, 4, first=first)

    train, test = (
        images('train', options.num_train, 0),
        images('val', options.num_test, options.num_train),
    )
    rows = SegmentationSearch(train, test, 11, ProbeOptions()).measure(options.timestep)
    rows = [
        dict(
            place=row['feature'] if row['block'] < 0 else f'{row["feature"]} of {row["block"]}',
            mIoU=f'{row["value"]:.1f} ({row["low"]:.1f} to {row["high"]:.1f})',
            strength=row['strength'],
        )
        for row in rows
    ]
    print(markdown_table(rows))


if __name__ == '__main__':
    main()
