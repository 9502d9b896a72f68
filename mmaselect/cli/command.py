# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""The command itself: its subcommands, and errors as one line."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from mmaselect.cli import (
    data,
    features,
    init,
    look,
    models,
    predict,
    probe,
    select,
    toolbox,
    verify,
)
from mmaselect.terminal.tool import DEBUG_FLAG, add_debug, in_one_line
from mmaselect.terminal.width import wrapped
from mmaselect.untrusted import only_weights
from mmaselect.version import __version__

EXAMPLES = """
words:
  timestep   how noisy an image is when the transformer reads it: 0 (clean) to 999 (noise)
  block      one layer of the transformer, counted from 0
  feature    what is read from a block: its query, key, value, attention or output
  place      a block and a feature of it

examples:
  # which models there are
  mmaselect list
  # the best timestep for your images, with a small model that ships with the package
  mmaselect select photos/ --pretrained mmaselect://dit_cifar10 --out work_dirs/photos
  # what the model sees in two of them, as a page for the browser
  mmaselect look photos/cat.jpg photos/dog.jpg --pretrained mmaselect://dit_cifar10 --out look.html
  # the features of all images, at a timestep that is picked first, by a model from the hub
  mmaselect features photos/ --pretrained facebook/DiT-XL-2-256 --timestep auto --out work_dirs/dit
  # a config for your labeled images, then training
  mmaselect init flowers/ --pretrained mmaselect://dit_cifar10 --out flowers.py
  mmaselect train flowers.py

`mmaselect COMMAND --help` shows the arguments of a command, and more examples.
"""


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command and of its subcommands."""
    parser = argparse.ArgumentParser(
        prog='mmaselect',
        description=wrapped(
            'Read features from a frozen diffusion transformer, at a timestep that is picked on '
            'your images without labels; train heads on them with MMSegmentation and MMPretrain.'
        ),
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--version', action='version', version=f'mmaselect {__version__}')
    commands = parser.add_subparsers(dest='command', required=True, metavar='COMMAND')
    # In the order of the help: what a newcomer needs first.
    for module in (models, select, look, features, probe, init, toolbox, predict, data, verify):
        if module is toolbox:
            for name in toolbox.TOOLS:
                toolbox.add_parser(commands, name)
            continue
        command = module.add_parser(commands)
        add_debug(command)
        command.set_defaults(run=module.run)
    return parser


def complete(parser: argparse.ArgumentParser) -> None:
    """Answer a shell that asks how a command line goes on, and end; else do nothing.

    For users who installed the extra ``completion`` and registered the command with argcomplete.
    """
    if '_ARGCOMPLETE' in os.environ:
        import argcomplete

        argcomplete.autocomplete(parser)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: Arguments after the command's name; those of the process if None.

    Returns:
        int: Exit status: 0, 1 after an error (one line on stderr), 2 after the help that a command
            line without a command gets, 130 after Ctrl-C.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv and argv[0] in toolbox.TOOLS:  # the tool parses its own flags
        args = argparse.Namespace(
            command=argv[0],
            debug=DEBUG_FLAG in argv,
            run=lambda _: toolbox.run_toolbox(argv[0], argv[1:]),
        )
    else:
        parser = build_parser()
        complete(parser)
        if not argv:
            parser.print_help(sys.stderr)
            return 2
        args = parser.parse_args(argv)
    try:
        with only_weights():
            args.run(args)
    except KeyboardInterrupt:
        print('mmaselect: stopped', file=sys.stderr)
        return 130
    except Exception as error:
        if args.debug:
            raise
        print(f'mmaselect {args.command}: error: {in_one_line(error)}', file=sys.stderr)
        return 1
    return 0
