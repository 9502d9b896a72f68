# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""``mmaselect select``: the timestep at which a model's features are best on a folder of images."""

from __future__ import annotations

import argparse
import json
import sys

from mmaselect.cli.arguments import (
    IMAGES_HELP,
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
from mmaselect.selection.option_flags import add_option_flags, given_options
from mmaselect.terminal.tool import user_path

EXAMPLES = """
examples:
  # the DiT that ships with the package: nothing is downloaded, minutes on a CPU
  mmaselect select photos/ --pretrained mmaselect://dit_cifar10

  # a published model in half precision; the result, its plot and a page go to a folder
  mmaselect select photos/ --pretrained facebook/DiT-XL-2-256 --dtype fp16 --out work_dirs/photos

  # a finer grid around low noise, and another block
  mmaselect select photos/ --pretrained facebook/DiT-XL-2-256 --timesteps 0:300:10 --blocks 10

  # block and feature are picked, too; a bound on the block bounds memory and time
  mmaselect select photos/ --pretrained facebook/DiT-XL-2-256 --blocks auto --feature auto
  mmaselect select photos/ --pretrained facebook/DiT-XL-2-256 --blocks 'auto:<=20' --feature auto

  # the paper's own criterion, to compare with
  mmaselect select photos/ --pretrained facebook/DiT-XL-2-256 --selection paper

The result is stored: the same command on the same images prints it again at once.
"""


def add_parser(commands: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """The subcommand's parser."""
    parser = new_parser(
        commands,
        'select',
        help='pick the timestep of a model on your images',
        description='Pick the timestep at which the features of a diffusion transformer are best '
        'for your images, and say how clear the pick is. Labels are not needed. With --blocks auto '
        'and --feature auto, block and feature are picked, too.',
        examples=EXAMPLES,
    )
    parser.add_argument('images', nargs='+', metavar='IMAGES', help=IMAGES_HELP)
    parser.add_argument(
        '--out',
        type=user_path,
        metavar='FOLDER',
        help='folder for selection.json, selection.png and selection.html',
    )
    parser.add_argument(
        '--table',
        action='store_true',
        help='print the scores of all timesteps, and in a search those of each block and feature',
    )
    add_output_arguments(parser, 'selection.json')
    add_model_arguments(parser)
    group = parser.add_argument_group('selection')
    add_option_flags(group)
    group.add_argument(
        '--no-cache',
        action='store_true',
        help='score the images even if a stored result fits, and store none',
    )
    return parser


def run(args: argparse.Namespace) -> None:
    """Select, print, and write if asked to."""
    check_images(args.images)
    from mmaselect.apis.selection import build_sweep
    from mmaselect.look import save_sweep_report
    from mmaselect.report.table import print_selection

    obey_output_arguments(args)
    options = given_options(args)
    sweep = build_sweep(
        model_source(args),
        one_or_all(args.images),
        **places(args),
        selection=options.pop('preset', None),
        dtype=args.dtype,
        device=args.device,
        cache=not args.no_cache,
        condition=condition(args),
        **options,
    )
    result = sweep.run()
    if args.json:
        print(json.dumps(result.to_dict(), indent=2))
    else:
        print_selection(result, table=args.table, from_cache=sweep.was_stored)
    if args.out is not None:
        for written in save_sweep_report(sweep, result, args.out, strict=True):
            print(written, file=sys.stderr if args.json else sys.stdout)
