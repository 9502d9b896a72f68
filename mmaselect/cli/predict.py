# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""``mmaselect predict``: label maps or classes of images, by a trained model."""

from __future__ import annotations

import argparse
from pathlib import Path

from mmaselect.cli.arguments import DEVICE_HELP, new_parser

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
        help='predict label maps or classes with a trained model; needs OpenMMLab',
        description='Predict label maps or classes of images with a trained model.',
        examples=EXAMPLES,
    )
    parser.add_argument('images', nargs='+', metavar='IMAGES', help='files or folders of images')
    parser.add_argument(
        '--config',
        required=True,
        metavar='CONFIG.py',
        help='config that the model was trained with',
    )
    parser.add_argument(
        '--checkpoint', required=True, metavar='FILE.pth', help='checkpoint of that training'
    )
    parser.add_argument('--out', required=True, metavar='FOLDER', help='folder for the predictions')
    parser.add_argument('--device', help=DEVICE_HELP)
    return parser


def run(args: argparse.Namespace) -> None:
    """Predict, and say what was written."""
    from mmaselect.diffusion.devices import pick_device
    from mmaselect.launch.predicting import image_files, predict

    device = str(pick_device(args.device))
    files = image_files(args.images)
    for written in predict(files, args.config, args.checkpoint, Path(args.out), device):
        print(written)
