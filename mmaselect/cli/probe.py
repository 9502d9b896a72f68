# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""``mmaselect probe``: accuracy of a linear probe at each timestep, next to the label-free pick."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from mmaselect.cli.arguments import (
    add_model_arguments,
    add_output_arguments,
    check_no_search,
    condition,
    model_source,
    new_parser,
    obey_output_arguments,
)
from mmaselect.selection.option_flags import add_option_flags, given_options

EXAMPLES = """
FOLDER has a sub-folder for each class (FOLDER/cat/*.jpg, FOLDER/dog/*.jpg), or the same below
FOLDER/train/ and FOLDER/test/.

examples:
  # a check with labels of what `mmaselect select` picks
  mmaselect probe flowers/ --pretrained mmaselect://dit_cifar10 --out work_dirs/probe

  # several blocks and features, few timesteps, at most 600 training and 600 test images
  mmaselect probe flowers/ --pretrained mmaselect://dit_cifar10 --blocks 2 3 4 \\
      --feature query output --timesteps 0:500:100 --num-train 600 --num-test 600
"""


def add_parser(commands: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """The subcommand's parser."""
    parser = new_parser(
        commands,
        'probe',
        help='measure accuracy at each timestep with a linear probe; needs labels',
        description='Fit a linear probe on the pooled features at each timestep of a folder of '
        'classes, and show its accuracy next to the label-free pick. Needs scikit-learn.',
        examples=EXAMPLES,
    )
    parser.add_argument(
        'folder', metavar='FOLDER', help='folder of images, with a sub-folder for each class'
    )
    parser.add_argument(
        '--out', metavar='FOLDER', help='folder for probe.json, probe.png and probe.html'
    )
    add_model_arguments(parser, searches=False)
    group = parser.add_argument_group('probe')
    group.add_argument('--num-train', type=int, metavar='N', help='training images; default: all')
    group.add_argument('--num-test', type=int, metavar='N', help='test images; default: all')
    add_option_flags(parser.add_argument_group('label-free selection'))
    add_output_arguments(parser, 'probe.json')
    return parser


def run(args: argparse.Namespace) -> None:
    """Probe, print, and write if asked to."""
    if not Path(args.folder).expanduser().is_dir():  # before imports that take seconds
        raise FileNotFoundError(
            f'there is no folder {args.folder!r}: give a folder with a sub-folder for each class'
        )
    from rich.table import Table

    check_no_search(args)
    obey_output_arguments(args)
    from mmaselect.analysis.folder_probe import probe_folder, save_probe, table_rows
    from mmaselect.checks import whole_number
    from mmaselect.diffusion import FrozenDiT
    from mmaselect.diffusion.devices import pick_device
    from mmaselect.report.table import print_warnings
    from mmaselect.selection import SelectionCache, SelectionOptions
    from mmaselect.terminal.width import console as new_console

    for name in ('num_train', 'num_test'):
        if getattr(args, name) is not None:
            whole_number(f'--{name.replace("_", "-")}', getattr(args, name), 2)
    options = given_options(args)
    how = SelectionOptions.parse(options.pop('preset', None)).replaced(**options)
    dit = FrozenDiT.from_pretrained(
        model_source(args),
        blocks=args.blocks,
        feature=args.feature,
        dtype=args.dtype,
        condition=condition(args),
        check=how.check_schedule,
    ).to(pick_device(args.device))
    found = probe_folder(dit, args.folder, how, args.num_train, args.num_test, SelectionCache())
    if args.json:
        print(json.dumps(found.to_dict()))
        if args.out is not None:
            for written in save_probe(found, args.out, args.pretrained):
                print(written, file=sys.stderr)
        return
    rows = table_rows(found)
    table = Table(title=f'{found.num_train} training and {found.num_test} test images')
    for name in rows[0]:
        table.add_column(name, justify='right')
    for row in rows:
        table.add_row(*map(str, row.values()))
    console = new_console()
    console.print(table)
    print_warnings(found.selection, console)
    best = found.best
    console.print(
        f'label-free pick: timestep {found.selection}; best by the probe: block {best.block}, '
        f'{best.feature}, timestep {best.timestep} ({best.accuracy:.1f} %, 95 % interval '
        f'{best.low:.1f} to {best.high:.1f})',
        style='bold',
    )
    if args.out is not None:
        for written in save_probe(found, args.out, args.pretrained):
            print(written)
