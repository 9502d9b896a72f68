# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Train a model of a MMSegmentation, MMPretrain or MMDetection config.

    python tools/train.py configs/aselect_dit_ade20k.py
    bash tools/dist_train.sh configs/aselect_dit_ade20k.py 8 --amp

The flags are those of the toolboxes' own ``tools/train.py``.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mmaselect.launch.cli import (
    build_runner,
    load_run_config,
    make_parser,
    naming_memory,
    seed_by_place,
    set_dataloaders,
)
from mmaselect.launch.distributed import leave_process_group
from mmaselect.launch.entries import check_calibration_is_there, naming_entries
from mmaselect.launch.summary import print_summary

# It checks that the toolboxes are installed, and says what to do if not.
from mmaselect.openmmlab.checkpoints import check_checkpoint_file, find_checkpoint
from mmaselect.terminal.tool import run_tool

if TYPE_CHECKING:
    from mmengine.config import Config

EXAMPLES = """
examples:
  # a config that `mmaselect init` wrote; checkpoints go to work_dirs/flowers
  %(prog)s flowers.py

  # a run that was stopped, resumed from its latest checkpoint
  %(prog)s flowers.py --resume

  # other settings than the config's
  %(prog)s flowers.py --amp --cfg-options train_dataloader.batch_size=16
"""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = make_parser('Train a segmentor, a classifier or a detector.', EXAMPLES)
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='continue from a checkpoint; without a path, from the latest one in the work dir, '
        'and it is an error if there is none. For jobs that a cluster starts again, `--cfg-options '
        'resume=True` begins anew where there is none',
    )
    parser.add_argument('--amp', action='store_true', help='train with automatic mixed precision')
    parser.add_argument('--no-validate', action='store_true', help='do not validate while training')
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help="scale the learning rate by the real batch size over the config's base_batch_size",
    )
    parser.add_argument(
        '--no-persistent-workers',
        action='store_true',
        help='set persistent_workers=False in all dataloaders',
    )
    return parser.parse_args(argv)


def merge_flags(config: Config, args: argparse.Namespace) -> None:
    """Write what the flags ask for into the config.

    Args:
        config (Config): The run's config; changed in place.
        args (Namespace): The command line.

    Raises:
        ValueError: If a flag asks for what the config cannot give.
        FileNotFoundError: If the checkpoint to resume from does not exist.
    """
    if args.resume == 'auto':
        config.resume = True
        config.load_from = None
    elif args.resume is not None:
        # DeepSpeed's checkpoints are folders.
        if '://' not in args.resume and not os.path.exists(args.resume):
            raise FileNotFoundError(
                f'--resume: there is no checkpoint {args.resume!r}. Without a path, --resume takes '
                f'the latest one in {config.work_dir!r}.'
            )
        config.resume = True
        config.load_from = args.resume
    if args.amp:
        wrapper = config.optim_wrapper
        kind = wrapper.get('type', 'OptimWrapper')
        if kind not in ('OptimWrapper', 'AmpOptimWrapper'):
            raise ValueError(
                '--amp needs an `optim_wrapper` of type OptimWrapper or AmpOptimWrapper, not '
                f'{kind}.'
            )
        wrapper.type = 'AmpOptimWrapper'
        wrapper.setdefault('loss_scale', 'dynamic')
    if args.no_validate:
        config.val_cfg = config.val_dataloader = config.val_evaluator = None
    if args.auto_scale_lr:
        if 'base_batch_size' not in (config.get('auto_scale_lr') or {}):
            raise ValueError(
                '--auto-scale-lr needs the batch size that the learning rate is meant for: set '
                '`auto_scale_lr = dict(base_batch_size=...)` in the config.'
            )
        config.auto_scale_lr.enable = True


def settle_checkpoint(config: Config, must_resume: bool) -> None:
    """Decide on the checkpoint that the run starts from, before anything is built.

    Args:
        config (Config): The run's config; changed in place.
        must_resume (bool): Whether it is an error that there is nothing to resume.

    Raises:
        FileNotFoundError: If it is.
        ValueError: If the checkpoint cannot be read, or there are some and none is whole.
    """
    if config.get('resume') and config.get('load_from') is None:
        found = find_checkpoint(config.work_dir)
        if found is None and must_resume:
            raise FileNotFoundError(
                f'--resume: there is nothing to resume in {config.work_dir!r}: it holds no '
                f'checkpoint. Give its path (--resume PATH), the right --work-dir, or leave '
                f'--resume out to start from the beginning.'
            )
        config.resume = found is not None
        config.load_from = found
    if config.get('load_from') and os.path.isfile(config.load_from):
        check_checkpoint_file(config.load_from)


def main(argv: Sequence[str] | None = None) -> None:
    """Train, and say what came of it."""
    args = parse_args(argv)
    config, toolbox = load_run_config(args)
    merge_flags(config, args)
    set_dataloaders(
        config,
        toolbox,
        ('train_dataloader', 'val_dataloader', 'test_dataloader'),
        args.no_pin_memory,
        args.no_persistent_workers,
    )
    seed_by_place(config.train_dataloader)
    settle_checkpoint(config, must_resume=args.resume is not None)
    check_calibration_is_there(config)
    runner = build_runner(config, args.verbose)
    with naming_memory(runner), naming_entries(config, runner):
        runner.train()
    print_summary(runner)
    leave_process_group()


if __name__ == '__main__':
    run_tool(main)
