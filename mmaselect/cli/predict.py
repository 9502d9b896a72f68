# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""``mmaselect predict``: label maps or classes of images, by a trained model."""

from __future__ import annotations

import argparse
from pathlib import Path

from mmaselect.cli.arguments import new_parser

EXAMPLES = """
examples:
  mmaselect predict photos/ --config flowers.py --checkpoint work_dirs/flowers/epoch_10.pth \\
      --out predictions

A segmentor writes predictions/masks/NAME.png (label maps with a palette), a classifier
predictions/predictions.csv; both write predictions/overview.png, a contact sheet of some images.
"""


def add_parser(commands: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """The subcommand's parser."""
    parser = new_parser(
        commands,
        'predict',
        help='predict label maps or classes with a trained model',
        description='Predict label maps or classes of images with a model that was trained.',
        examples=EXAMPLES,
    )
    parser.add_argument('images', nargs='+', metavar='IMAGES', help='files or folders of images')
    parser.add_argument('--config', required=True, help='the config that the model was trained by')
    parser.add_argument('--checkpoint', required=True, help='its .pth file')
    parser.add_argument('--out', required=True, metavar='FOLDER', help='where predictions go')
    parser.add_argument('--device', help='default: cuda if there is one, else cpu')
    return parser


def run(args: argparse.Namespace) -> None:
    """Predict, and say what was written."""
    from mmaselect.diffusion.devices import pick_device
    from mmaselect.launch.predicting import image_files, predict

    device = str(pick_device(args.device))
    files = image_files(args.images)
    for written in predict(files, args.config, args.checkpoint, Path(args.out), device):
        print(written)
