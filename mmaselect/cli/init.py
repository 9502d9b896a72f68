# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""``mmaselect init``: a config that trains on a folder of images."""

from __future__ import annotations

import argparse
import shlex
import sys
from importlib.util import find_spec
from pathlib import Path

from mmaselect.cli.arguments import new_parser

EXAMPLES = """
The folder holds a folder for each class, images and label maps, or boxes in COCO's format:

  flowers/rose/*.jpg  flowers/tulip/*.jpg       (or below flowers/train/ and flowers/val/)
  street/images/*.jpg  street/masks/*.png       (or images/train/, images/val/, masks/train/, ...)
  fruit/annotations/*train*.json  fruit/train/  (or fruit/train/*.json next to the images)

Label maps are found by the beginning of their names: a.jpg and a.png, or a_img.png and a_mask.png;
the layouts of Pascal VOC, ADE20K and Cityscapes fit, too. The names of the classes of label maps
are read from street/classes.txt, one per line. If there are no validation images, a tenth of the
images is held out.

examples:
  mmaselect init flowers/ --pretrained mmaselect://dit_cifar10 --out flowers.py
  mmaselect train flowers.py
  mmaselect test flowers.py work_dirs/flowers/epoch_10.pth
  mmaselect predict new_photos/ --config flowers.py --checkpoint work_dirs/flowers/epoch_10.pth \\
      --out predictions
"""


def add_parser(commands: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """The subcommand's parser."""
    parser = new_parser(
        commands,
        'init',
        help='write a training config for a folder of labeled images; needs OpenMMLab',
        description='Write a config that trains a classifier, a segmentor or a detector on a '
        'folder of images, with classes, widths, sizes and paths filled in.',
        examples=EXAMPLES,
    )
    parser.add_argument('folder', metavar='FOLDER', help='labeled images, laid out as shown below')
    parser.add_argument(
        '--pretrained',
        required=True,
        metavar='MODEL',
        help='hub id (`mmaselect list` has names), pipeline folder, or mmaselect://dit_cifar10',
    )
    parser.add_argument('--out', required=True, metavar='CONFIG.py', help='the config to write')
    parser.add_argument(
        '--iterations',
        type=int,
        metavar='N',
        help='steps of training; default: depends on the task, see the config that is written',
    )
    parser.add_argument(
        '--batch-size', type=int, default=8, metavar='N', help='images per step; default: 8'
    )
    parser.add_argument(
        '--lr', type=float, metavar='X', help='learning rate; default: depends on the task, too'
    )
    parser.add_argument('--overwrite', action='store_true', help='replace a config that exists')
    return parser


def run(args: argparse.Namespace) -> None:
    """Look into the folder, write the config, and say what comes next."""
    from mmaselect.checks import check_path, whole_number
    from mmaselect.files import write_atomically
    from mmaselect.launch.layouts import look_into, write_splits
    from mmaselect.launch.new_config import Recipe, config_text, describe_model

    out = Path(check_path('--out', args.out))
    if out.suffix != '.py':
        raise ValueError(f'--out must be a .py file, got {str(out)!r}')
    if out.exists() and not args.overwrite:
        raise FileExistsError(f'{out} exists: give another --out, or --overwrite')
    batch_size = whole_number('--batch-size', args.batch_size, 1)
    iterations = args.iterations
    if iterations is not None:
        iterations = whole_number('--iterations', iterations, 1)
    if args.lr is not None and not args.lr > 0:
        raise ValueError(f'--lr must be greater than 0, got {args.lr}')
    data = look_into(args.folder)
    model = describe_model(args.pretrained)
    command = shlex.join(['mmaselect', *sys.argv[1:]])
    text = config_text(data, model, Recipe(iterations, batch_size, args.lr), command)
    write_splits(data, out.parent / 'splits')
    write_atomically(out, text)
    print(f'{data.task}: {data.count} images, {len(data.classes)} classes, {model.width} channels')
    print(f'written: {out}\nnext:    mmaselect train {shlex.quote(str(out))}')
    if data.task == 'detection' and find_spec('mmdet') is None:
        print('         MMDetection is not installed: docs/detection.md has the steps')
