# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""``mmaselect list``: the published models, or the criteria."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys

from mmaselect.cli.arguments import new_parser
from mmaselect.model_zoo import fits, list_models, model_info
from mmaselect.terminal.tables import print_columns

EXAMPLES = """
columns:
  width       channels of a feature
  blocks      how many blocks the model has; default is the one that is read by default
  stride      pixels to a side that one token of the feature map covers
  GiB         of 16-bit weights: read, what is held to read the default block; whole, all blocks

examples:
  mmaselect list                                  # every model
  mmaselect list 'facebook/*'                     # by wildcards
  mmaselect list --family sd3 --family 'flux*'    # of two kinds
  mmaselect list --open --json                    # those that need no login, for a script
  mmaselect list --criteria                       # what a timestep can be picked by

Other models of the same families work too: give their hub id, or a folder in diffusers' layout.
"""


def add_parser(commands: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """The subcommand's parser."""
    parser = new_parser(
        commands,
        'list',
        help='published models, or criteria',
        description='List the published models that the package knows, or the criteria by which a '
        'timestep is picked.',
        examples=EXAMPLES,
    )
    parser.add_argument(
        'filters',
        nargs='*',
        metavar='FILTER',
        help='part of a name, or a pattern with * and ?; models that fit any of them are listed',
    )
    parser.add_argument(
        '--exclude',
        action='append',
        default=[],
        metavar='FILTER',
        help='leave out models that fit; may be repeated',
    )
    parser.add_argument(
        '--family',
        action='append',
        default=[],
        metavar='NAME',
        help="only models of a family, such as sd3 or 'flux*'; may be repeated",
    )
    gate = parser.add_mutually_exclusive_group()
    gate.add_argument(
        '--gated',
        action='store_true',
        default=None,
        help='only models whose license must be accepted on their page before they download',
    )
    gate.add_argument(
        '--open',
        action='store_false',
        dest='gated',
        help='only models that download without that',
    )
    parser.add_argument(
        '--criteria',
        action='store_true',
        help='list the criteria that can pick a timestep, instead of models',
    )
    parser.add_argument(
        '--json', action='store_true', help='print JSON to stdout, and nothing else'
    )
    return parser


def run(args: argparse.Namespace) -> None:
    """Print models, or criteria."""
    if args.criteria:
        from mmaselect.apis import list_criteria
        from mmaselect.apis.criteria import criterion_summary

        if args.family or args.gated is not None:
            raise ValueError('--family, --gated and --open are for models: leave out --criteria')
        names = [
            name
            for name in list_criteria()
            if fits(name, args.filters, empty=True) and not fits(name, args.exclude, empty=False)
        ]
        if not names:
            raise ValueError('no criterion fits; `mmaselect list --criteria` shows all of them')
        if args.json:
            print(json.dumps(names))
        else:
            print_columns(
                [('criterion', 'what it scores'), *((n, criterion_summary(n)) for n in names)]
            )
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
    head = (
        *('model', 'family', 'width', 'blocks', 'default', 'stride', 'parameters'),
        *('GiB read', 'GiB whole', 'license'),
    )
    rows = [head] + [
        (
            model.name,
            model.family,
            str(model.width),
            str(model.blocks),
            str(model.default_block),
            str(model.stride),
            f'{model.millions / 1000:.3g} B' if model.millions >= 100 else f'{model.millions} M',
            _gib(model.held),
            _gib(model.whole),
            model.license + (' (gated)' if model.gated else ''),
        )
        for model in models
    ]
    print_columns(rows)
    if sys.stdout.isatty():
        print(
            '\nGiB are those of 16-bit weights: what is held where the default block is read, and '
            'the whole transformer.'
        )


def _gib(number: float) -> str:
    return f'{number:.1f}' if number >= 0.05 else '< 0.1'
