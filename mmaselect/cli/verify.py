# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""``mmaselect verify``: a model's features against diffusers, and what they cost here."""

from __future__ import annotations

import argparse

from mmaselect.cli.arguments import new_parser
from mmaselect.terminal.tool import user_path

EXAMPLES = """
examples:
  # the DiT that ships with the package: seconds on a CPU
  mmaselect verify mmaselect://dit_cifar10

  # a published model on a GPU; verify.json is what docs/verified.md is made from
  mmaselect verify facebook/DiT-XL-2-256 --dtype bf16 --out work_dirs/verify/dit

  # and what the default criterion and the paper's pick on images of yours
  mmaselect verify facebook/DiT-XL-2-256 --images photos/

The exit status is 1 if a feature differs from that of diffusers.
"""


def add_parser(commands: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """The subcommand's parser."""
    parser = new_parser(
        commands,
        'verify',
        help="check a model's features against diffusers, and measure them",
        description="Compare a model's features with those of the whole transformer that "
        'diffusers loads, and measure speed, memory and utilization.',
        examples=EXAMPLES,
    )
    parser.add_argument('model', metavar='MODEL', help='hub id, folder, or mmaselect://NAME')
    parser.add_argument('--images', help='folder of images to compare two criteria on')
    parser.add_argument('--out', type=user_path, help='folder for verify.json')
    parser.add_argument(
        '--blocks', nargs='+', type=int, metavar='N', help='default: first, default and last'
    )
    parser.add_argument('--dtype', default='auto', help='fp32, fp16, bf16 or auto; default: auto')
    parser.add_argument('--device', help='default: cuda if there is one, else cpu')
    parser.add_argument('--image-size', type=int, metavar='PIXELS', help="default: the model's own")
    parser.add_argument('--batch-size', type=int, default=2, help='images per pass; default: 2')
    parser.add_argument('--variant', help='such as fp16, of the files of weights')
    parser.add_argument('--revision', help='branch, tag or commit on the hub')
    return parser


def run(args: argparse.Namespace) -> None:
    """Check, print a table, and write if asked to.

    Raises:
        RuntimeError: If a feature differs.
    """
    from mmaselect.apis.verification import verified_table, verify_model
    from mmaselect.diffusion import ModelSource

    source = ModelSource(args.model, variant=args.variant, revision=args.revision)
    names = ('images', 'out', 'blocks', 'dtype', 'device', 'image_size', 'batch_size')
    result = verify_model(source, **{name: getattr(args, name) for name in names})
    print(verified_table([result]), end='')
    for name, found in result.get('selection', {}).items():
        print(
            f'{name} selection: {found["criterion"]} picks t = {found["timestep"]} from '
            f'{found["num_images"]} images in {found["seconds"]:.1f} s'
        )
    if not result['passed']:
        bad = {k: v for k, v in result['features'].items() if v > result['tolerance']}
        raise RuntimeError(
            f'{len(bad)} of {len(result["features"])} features differ from those of diffusers by '
            f'more than {result["tolerance"]:g} of their norm, such as {next(iter(bad))}'
        )
