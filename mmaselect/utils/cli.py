# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""The command line that ``tools/train.py`` and ``tools/test.py`` share."""

import argparse
import os
from copy import deepcopy

from mmengine.config import Config, ConfigDict
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from mmaselect.tool import make_tool_parser

from .config import get_toolbox, load_config
from .distributed import AverageNormStatistics, prepare_cpu_launch
from .flags import add_cfg_options, add_launcher


def make_parser(description: str) -> argparse.ArgumentParser:
    """An argument parser with the flags that both tools have."""
    parser = make_tool_parser(description)
    parser.add_argument('config', help='config file, of MMSegmentation or MMPretrain')
    parser.add_argument(
        '--work-dir',
        help='folder for logs and checkpoints; default: that of the config, else '
        'work_dirs/CONFIG_NAME',
    )
    parser.add_argument(
        '--no-pin-memory', action='store_true', help='set pin_memory=False in all dataloaders'
    )
    add_cfg_options(parser)
    add_launcher(parser)
    return parser


def load_run_config(args: argparse.Namespace) -> tuple[Config, str]:
    """The config of a run with the shared flags merged in.

    ``--cfg-options`` are merged first, so that a flag of its own has the last word.

    Args:
        args: What :func:`make_parser`'s parser returned.

    Returns:
        tuple[Config, str]: The config, and its toolbox (``'mmseg'`` or ``'mmpretrain'``).
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    config = load_config(args.config, args.cfg_options)
    toolbox = get_toolbox(config)
    config.launcher = args.launcher
    if args.work_dir is not None:
        config.work_dir = args.work_dir
    elif config.get('work_dir') is None:
        name = os.path.splitext(os.path.basename(args.config))[0]
        config.work_dir = os.path.join('work_dirs', name)
    return config, toolbox


def set_dataloaders(
    config: Config,
    toolbox: str,
    names: tuple[str, ...],
    no_pin_memory: bool = False,
    no_persistent_workers: bool = False,
) -> None:
    """Fill in what the toolbox's own tools assume of a dataloader, and apply the flags.

    MMPretrain's configs count on its tools to set ``pin_memory``, ``persistent_workers`` and the
    collate function. Without worker processes ``persistent_workers`` is an error in PyTorch, and
    is set to False.

    Args:
        config: The run's config; changed in place.
        toolbox: ``'mmseg'`` or ``'mmpretrain'``.
        names: The dataloaders' names in the config.
        no_pin_memory: Whether to turn ``pin_memory`` off. Defaults to False.
        no_persistent_workers: Whether to turn ``persistent_workers`` off. Defaults to False.
    """
    defaults = ConfigDict()
    if toolbox == 'mmpretrain':
        defaults = ConfigDict(
            pin_memory=True, persistent_workers=True, collate_fn=dict(type='default_collate')
        )
    for name in names:
        if config.get(name) is None:
            continue
        loader = deepcopy(defaults)
        loader.update(config[name])
        if no_pin_memory:
            loader.pin_memory = False
        if no_persistent_workers or loader.get('num_workers', 0) == 0:
            loader.persistent_workers = False
        config[name] = loader


def build_runner(config: Config) -> Runner:
    """Build the runner of a config, ready for any launcher on any device."""
    on_cpus = prepare_cpu_launch(config)
    runner = RUNNERS.build(config) if 'runner_type' in config else Runner.from_cfg(config)
    if on_cpus:
        runner.register_hook(AverageNormStatistics())
    return runner
