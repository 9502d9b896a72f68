# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""``mmaselect select``: the timestep at which a model's features are best on a folder of images."""

from __future__ import annotations

import argparse

from mmaselect.cli.arguments import (
    add_image_arguments,
    add_model_arguments,
    condition,
    model_source,
    new_parser,
)

EXAMPLES = """
examples:
  # the DiT that ships with the package: nothing is downloaded, minutes on a CPU
  mmaselect select photos/ --pretrained mmaselect://dit_cifar10

  # a published model in half precision; the result, its plot and a page go to a folder
  mmaselect select photos/ --pretrained facebook/DiT-XL-2-256 --dtype fp16 --out work_dirs/photos

  # a finer grid around low noise, another block, the paper's criterion
  mmaselect select photos/ --pretrained facebook/DiT-XL-2-256 --timesteps 0:300:10 --blocks 10 \\
      --criterion PaperHFR

The result is cached: asked the same again, the command does not sweep again. Labels are not needed.
"""


#: Flags that are options of a selection, with its defaults.
OPTIONS = ('timesteps', 'criterion', 'num_images', 'method', 'confidence', 'refine')


def add_parser(commands: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """The subcommand's parser."""
    parser = new_parser(
        commands,
        'select',
        help='pick the timestep of a model on images of yours',
        description='Pick the timestep at which a diffusion transformer is to be read, from '
        'unlabeled images, and say how clear the pick is.',
        examples=EXAMPLES,
    )
    parser.add_argument('images', metavar='IMAGES', help='folder of images, searched recursively')
    parser.add_argument('--out', help='folder for selection.json, selection.png and selection.html')
    add_model_arguments(parser)
    add_image_arguments(parser)
    group = parser.add_argument_group('selection')
    group.add_argument(
        '--timesteps',
        metavar='START:STOP:STEP',
        help='grid, 0 = clean, STOP left out; or a comma-separated list. Default: 0:1000:25',
    )
    group.add_argument(
        '--criterion',
        help='what picks; `mmaselect list --criteria` has the names. Default: InstanceSensitivity',
    )
    group.add_argument('--num-images', type=int, help='images to use at most; default: 128')
    group.add_argument(
        '--method',
        choices=('race', 'full'),
        help='race: drop timesteps that cannot be the best any more; full: score all of them on '
        'all images. Default: race',
    )
    group.add_argument(
        '--confidence',
        type=float,
        help='of the race: that a dropped timestep is worse than the leader. Default: 0.999',
    )
    group.add_argument(
        '--refine',
        type=int,
        metavar='SPACING',
        help='search a finer grid of this spacing around the best timesteps. Default: none',
    )
    group.add_argument(
        '--no-cache', action='store_true', help='sweep even if a stored result fits, and store none'
    )
    return parser


def run(args: argparse.Namespace) -> None:
    """Select, print, and write if asked to."""
    from mmaselect.apis import select_timestep
    from mmaselect.images import CalibrationSet, ImageFolder
    from mmaselect.images.thumbnails import try_thumbnails
    from mmaselect.report import save_report
    from mmaselect.report.table import print_selection

    given = {name: getattr(args, name) for name in OPTIONS}
    result = select_timestep(
        model_source(args),
        args.images,
        blocks=args.blocks,
        feature=args.feature,
        image_size=args.image_size,
        batch_size=args.batch_size,
        seed=args.seed,
        dtype=args.dtype,
        device=args.device,
        cache=not args.no_cache,
        **{name: value for name, value in given.items() if value is not None},
        condition=condition(args),
    )
    print_selection(result)
    if args.out is not None:
        images = CalibrationSet(
            ImageFolder(args.images), result.settings['image_size'], result.num_images, args.seed
        )
        for written in save_report(result, args.out, try_thumbnails(images)):
            print(written)
