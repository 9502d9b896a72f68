# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""``mmaselect features``: the features of a folder of images, as files."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from mmaselect.cli.arguments import (
    IMAGES_HELP,
    add_image_arguments,
    add_model_arguments,
    add_output_arguments,
    check_images,
    condition,
    model_source,
    new_parser,
    obey_output_arguments,
    one_or_all,
    places,
)
from mmaselect.selection.defaults import PRESET_HELP, PRESETS
from mmaselect.terminal.tool import user_path

EXAMPLES = """
examples:
  # the DiT that ships with the package, at a timestep that is picked on these images first
  mmaselect features photos/ --pretrained mmaselect://dit_cifar10 --timestep auto --out work_dirs/a

  # two blocks of a published model, the mean over positions, in half the space
  mmaselect features photos/ --pretrained facebook/DiT-XL-2-256 --timestep 75 --blocks 10 14 \\
      --pool mean --store fp16 --out work_dirs/b

  # tar shards in an object store, by 8 processes; under Slurm: srun mmaselect features ...
  # if a process dies, srun lets the others finish the work, and torchrun starts all again
  torchrun --max-restarts 3 --nproc-per-node 8 --no-python \\
      mmaselect features 's3://photos/{000..999}.tar' --pretrained facebook/DiT-XL-2-256 \\
      --timestep 75 --pool mean --store bf16 --out /shared/c

If it is stopped, run it again: it resumes, with any number of processes. To read the files:

  from mmaselect.apis import load_features
  stored = load_features('work_dirs/b')          # memory-mapped; framework='numpy' for arrays
  stored.paths[0], stored[0][10, 'query']        # one image
  stored.stack(10, 'query')                      # all of them, (images, C) or (images, C, H, W)
"""


def add_parser(commands: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """The subcommand's parser."""
    parser = new_parser(
        commands,
        'features',
        help='write the features of images to files',
        description='Write the feature maps of images to files. Any number of processes share the '
        'work, and a command that was stopped resumes.',
        examples=EXAMPLES,
    )
    parser.add_argument(
        'images',
        nargs='+',
        metavar='IMAGES',
        help=IMAGES_HELP,
    )
    parser.add_argument(
        '--out',
        type=user_path,
        required=True,
        metavar='FOLDER',
        help='folder to write to, outside of IMAGES',
    )
    parser.add_argument(
        '--timestep',
        required=True,
        type=timestep,
        metavar='N|auto',
        help='timestep to read at, 0 (clean) to 999 (noise); auto picks it on these images',
    )
    parser.add_argument(
        '--selection',
        choices=PRESETS,
        help=f'preset by which auto picks; default: as `mmaselect select` picks. {PRESET_HELP}',
    )
    add_model_arguments(parser)
    add_image_arguments(parser)
    group = parser.add_argument_group('files')
    group.add_argument(
        '--pool',
        choices=['none', 'mean'],
        default='none',
        help='keep the maps, or their mean over positions; default: none',
    )
    group.add_argument(
        '--store',
        choices=['fp32', 'fp16', 'bf16'],
        default='fp32',
        help='precision of the stored numbers; default: fp32',
    )
    group.add_argument(
        '--to',
        choices=['safetensors', 'webdataset', 'parquet'],
        default='safetensors',
        help='format of the files; default: safetensors',
    )
    group.add_argument(
        '--shard-size', type=int, default=256, metavar='N', help='images per file; default: 256'
    )
    group.add_argument(
        '--workers',
        type=int,
        metavar='N',
        help='processes that read and decode images; default: 4 next to a GPU, else 0',
    )
    group.add_argument(
        '--column',
        metavar='NAME',
        help='column of parquet files and data sets that holds the images, if several do',
    )
    group.add_argument(
        '--overwrite',
        action='store_true',
        help='delete features in the folder that were written with other settings',
    )
    add_output_arguments(parser, 'what was written')
    return parser


def timestep(text: str) -> int | str:
    """``'auto'``, or a whole number."""
    return text if text == 'auto' else int(text)


def run(args: argparse.Namespace) -> None:
    """Write the features, and say what is there."""
    check_images(args.images)
    from mmaselect.apis import StoredFeatures, save_features
    from mmaselect.apis.extraction import rank_and_world
    from mmaselect.report.table import print_warnings
    from mmaselect.selection import SelectionResult

    obey_output_arguments(args)
    stored = save_features(
        one_or_all(args.images),
        args.out,
        model_source(args),
        timestep=args.timestep,
        selection=args.selection,
        **places(args),
        image_size=args.image_size,
        pool=args.pool,
        store=args.store,
        to=args.to,
        shard_size=args.shard_size,
        workers=args.workers,
        column=args.column,
        batch_size=args.batch_size,
        seed=args.seed,
        dtype=args.dtype,
        device=args.device,
        overwrite=args.overwrite,
        condition=condition(args),
    )
    if rank_and_world()[0]:
        return  # the first process says it
    if args.json:
        found = dict(folder=str(args.out), files=args.to)
        if isinstance(stored, StoredFeatures):
            shapes = {f'{b} {name}': list(v.shape) for (b, name), v in stored[0].items()}
            found.update(images=len(stored), timestep=stored.timestep, shapes=shapes)
        print(json.dumps(found))
        return
    if not isinstance(stored, StoredFeatures):
        print(f'{stored}: {args.to} files')
        return
    print(f'{stored.folder}: {len(stored)} images at timestep {stored.timestep}')
    selection = Path(stored.folder) / 'selection.json'
    if selection.is_file():  # the timestep, or the place, was picked
        print_warnings(SelectionResult.load(selection))
    for key, value in stored[0].items():
        print(f'  block {key[0]}, {key[1]}: {tuple(value.shape)} each')
