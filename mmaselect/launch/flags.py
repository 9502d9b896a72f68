# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Flags that several tools have, with one meaning and one help text each.

Every function adds to a parser; a tool names what it takes.
"""

from __future__ import annotations

import argparse

from mmengine.config import DictAction

LAUNCHERS = ('none', 'pytorch', 'slurm', 'mpi')


def add_cfg_options(parser: argparse.ArgumentParser, help: str = '') -> None:
    """``--cfg-options KEY=VALUE ...``.

    Args:
        parser: The tool's.
        help: In place of the usual text.
    """
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help=help
        or 'override settings of the config; lists as key="[a,b]" or key=a,b, nested ones as '
        'key="[(a,b),(c,d)]", quoted and without blanks',
    )


def add_launcher(parser: argparse.ArgumentParser) -> None:
    """``--launcher``, and the rank that ``torch.distributed.launch`` hands over."""
    parser.add_argument(
        '--launcher',
        choices=LAUNCHERS,
        default='none',
        help='what starts the processes of a distributed run; default: none',
    )
    # torch.distributed.launch passes --local-rank; torchrun sets LOCAL_RANK instead.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)


def add_device(parser: argparse.ArgumentParser) -> None:
    """``--device``."""
    parser.add_argument('--device', help='default: cuda if there is one, else cpu')


def add_timesteps(
    parser: argparse.ArgumentParser,
    default: str | None,
    help: str = 'grid, 0 = clean, STOP left out; or a comma-separated list; default: %(default)s',
) -> None:
    """``--timesteps START:STOP:STEP``.

    Args:
        parser: The tool's.
        default: The grid where none is given.
        help: In place of the usual text.
    """
    parser.add_argument('--timesteps', default=default, metavar='START:STOP:STEP', help=help)
