# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""``mmaselect verify``: a model's features against diffusers, and what they cost here."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmaselect.cli.arguments import DEVICE_HELP, REVISION_HELP, VARIANT_HELP, new_parser
from mmaselect.terminal.tool import user_path

if TYPE_CHECKING:
    from mmaselect.diffusion import ModelSource

EXAMPLES = """
examples:
  # the DiT that ships with the package: seconds on a CPU
  mmaselect verify mmaselect://dit_cifar10

  # a published model on a GPU; verify.json is what docs/verified.md is made from
  mmaselect verify facebook/DiT-XL-2-256 --dtype bf16 --out work_dirs/verify/dit

  # also the picks of two criteria on your images
  mmaselect verify facebook/DiT-XL-2-256 --images photos/

The exit status is 1 if a feature, or an input of the transformer, differs from that of diffusers.
"""


def add_parser(commands: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """The subcommand's parser."""
    parser = new_parser(
        commands,
        'verify',
        help="check a model's features against diffusers, and measure them",
        description="Compare a model's features with those that plain hooks read while diffusers' "
        'own pipeline makes an image, and measure speed, memory and utilization.',
        examples=EXAMPLES,
    )
    parser.add_argument('model', metavar='MODEL', help='hub id, folder, or mmaselect://dit_cifar10')
    parser.add_argument(
        '--images',
        metavar='FOLDER',
        help="folder of images on which the default criterion and the paper's pick a timestep; if "
        'it has a sub-folder for each class, a linear probe compares the picks',
    )
    parser.add_argument('--out', type=user_path, metavar='FOLDER', help='folder for verify.json')
    parser.add_argument(
        '--blocks',
        nargs='+',
        type=int,
        metavar='N',
        help='blocks to compare; default: the first, the default and the last one',
    )
    parser.add_argument(
        '--dtype', default='auto', help='precision: fp32, fp16, bf16 or auto; default: auto'
    )
    parser.add_argument('--device', help=DEVICE_HELP)
    parser.add_argument(
        '--image-size',
        type=int,
        metavar='PIXELS',
        help="side of the images; default: the model's own training size",
    )
    parser.add_argument(
        '--batch-size', type=int, default=2, metavar='N', help='images per pass; default: 2'
    )
    parser.add_argument(
        '--against',
        choices=['auto', 'pipeline', 'transformer'],
        default='auto',
        help="compare with the pipeline's own call, or with the whole transformer alone, which "
        'needs no text encoders; default: auto, the pipeline if it can be compared',
    )
    parser.add_argument('--variant', help=VARIANT_HELP)
    parser.add_argument('--revision', help=REVISION_HELP)
    return parser


def run(args: argparse.Namespace) -> None:
    """Check, print a table, and write if asked to.

    Raises:
        RuntimeError: If a feature differs.
    """
    from mmaselect.apis.verification import FILE, verified_table, verify_model
    from mmaselect.diffusion import ModelSource
    from mmaselect.files import write_json
    from mmaselect.images.class_folders import split_folders

    source = ModelSource(args.model, variant=args.variant, revision=args.revision)
    names = ('blocks', 'dtype', 'device', 'image_size', 'batch_size', 'against')
    # Test images, where the folder has some, are for the probe alone.
    images = None if args.images is None else split_folders(Path(args.images))[0]
    result = verify_model(source, images=images, **{name: getattr(args, name) for name in names})
    if args.images is not None:
        _probe_picks(result, source, args)
    if args.out is not None:
        write_json(Path(args.out) / FILE, result)
    print(verified_table([result]), end='')
    print(f'compared with {result["against"]}')
    if result['given_inputs']:
        print(f'of its inputs, ours were put in: {", ".join(result["given_inputs"])}')
    if result['wrong_inputs']:
        raise RuntimeError(
            f'{result["against"]} gives its transformer other values than we do: '
            f'{", ".join(result["wrong_inputs"])} (see inputs in {FILE}, by --out)'
        )
    if not result['passed']:
        bad = {k: v for k, v in result['features'].items() if v > result['tolerance']}
        raise RuntimeError(
            f'{len(bad)} of {len(result["features"])} features differ from those of diffusers by '
            f'more than {result["tolerance"]:g} of their norm, such as {next(iter(bad))}'
        )


def _probe_picks(result: dict[str, Any], source: ModelSource, args: argparse.Namespace) -> None:
    """Add the accuracy of a linear probe at each pick, where the images lie in class folders."""
    from mmaselect.analysis.folder_probe import probe_timesteps
    from mmaselect.diffusion import FrozenDiT
    from mmaselect.diffusion.devices import pick_device
    from mmaselect.images.class_folders import ClassFolders, split_folders
    from mmaselect.selection import SelectionOptions

    try:
        ClassFolders(split_folders(Path(args.images))[0])
    except ValueError:
        return  # without labels
    dit = FrozenDiT.from_pretrained(source, dtype=args.dtype).to(pick_device(args.device))
    picks = sorted({found['timestep'] for found in result['selection'].values()})
    points = {p.timestep: p for p in probe_timesteps(dit, args.images, picks, SelectionOptions())}
    for found in result['selection'].values():
        point = points[found['timestep']]
        found['probe'] = dict(accuracy=point.accuracy, low=point.low, high=point.high)
