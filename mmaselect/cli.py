# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""The ``mmaselect`` command: what needs no config, for whoever installed the package alone."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence

from mmaselect.model_zoo import list_models, model_info
from mmaselect.version import __version__

EXAMPLES = """
examples:
  mmaselect list                         the published models that were checked
  mmaselect list flux --open             of these, FLUX without a consent page

`mmaselect COMMAND --help` has the arguments and more examples of each.
"""
LIST_EXAMPLES = """
examples:
  mmaselect list                          every model
  mmaselect list 'facebook/*'             by wildcards
  mmaselect list --family sd3 --family 'flux*'
  mmaselect list --open --json            no consent page; for a script
  mmaselect list --criteria               what a timestep can be picked by

Other models of the same classes work too: give their hub id, or a folder in diffusers' layout.
"""


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command and of its subcommands."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        '--debug', action='store_true', help='show where an error came from, not its message alone'
    )
    parser = argparse.ArgumentParser(
        prog='mmaselect',
        description='Diffusion transformers as frozen backbones, read at a timestep that is picked '
        'automatically.',
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--version', action='version', version=f'mmaselect {__version__}')
    commands = parser.add_subparsers(dest='command', required=True, metavar='COMMAND')
    add_list(commands, common)
    return parser


def add_list(commands: argparse._SubParsersAction, common: argparse.ArgumentParser) -> None:
    """``mmaselect list``."""
    parser = commands.add_parser(
        'list',
        parents=[common],
        help='published models, or criteria',
        description='List the published models that were checked, with their facts.',
        epilog=LIST_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        'filters',
        nargs='*',
        metavar='FILTER',
        help='part of a name, or a pattern with * and ?; models that fit any of them are listed',
    )
    parser.add_argument(
        '--exclude', action='append', default=[], metavar='FILTER', help='leave these out'
    )
    parser.add_argument(
        '--family', action='append', default=[], help="'sd3', 'flux*', ...; may be repeated"
    )
    gate = parser.add_mutually_exclusive_group()
    gate.add_argument(
        '--gated', action='store_true', default=None, help='only models that ask for a consent'
    )
    gate.add_argument(
        '--open', action='store_false', dest='gated', help='only models that ask for none'
    )
    parser.add_argument('--criteria', action='store_true', help='list the criteria instead')
    parser.add_argument('--json', action='store_true', help='print JSON')
    parser.set_defaults(run=run_list)


def run_list(args: argparse.Namespace) -> None:
    """Print models, or criteria."""
    if args.criteria:
        from mmaselect.apis import list_criteria

        names = list_criteria()
        print(json.dumps(names) if args.json else '\n'.join(names))
        return
    names = list_models(
        args.filters, exclude_filters=args.exclude, family=args.family, gated=args.gated
    )
    models = [model_info(name) for name in names]
    if args.json:
        facts = [{**dataclasses.asdict(model), 'blocks': model.blocks} for model in models]
        print(json.dumps(facts, indent=2))
        return
    if not models:
        raise ValueError('no model fits; `mmaselect list` shows all of them')
    head = ('model', 'family', 'width', 'blocks', 'default', 'stride', 'parameters', 'license')
    rows = [head] + [
        (
            model.name,
            model.family,
            str(model.width),
            str(model.blocks),
            str(model.default_block),
            str(model.stride),
            f'{model.millions / 1000:.3g} B' if model.millions >= 100 else f'{model.millions} M',
            model.license + (' (gated)' if model.gated else ''),
        )
        for model in models
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print(
            '  '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: Arguments after the command's name; those of the process if None.

    Returns:
        int: Exit status: 0, 1 after an error (one line on stderr), 130 after Ctrl-C.
    """
    args = build_parser().parse_args(argv)
    try:
        args.run(args)
    except KeyboardInterrupt:
        print('mmaselect: stopped', file=sys.stderr)
        return 130
    except Exception as error:
        if args.debug:
            raise
        message = ' '.join(str(error).split()) or type(error).__name__
        print(f'mmaselect: error: {message}', file=sys.stderr)
        return 1
    return 0
