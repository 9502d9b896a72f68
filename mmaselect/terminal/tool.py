# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""What every command-line tool of ``tools/`` has: help that shows examples, and one-line errors.

Knows no torch, so that ``--help`` is there at once.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from mmaselect.untrusted import only_weights

DEBUG_FLAG = '--debug'


def user_path(text: str) -> str:
    """A path as it was typed, with ``~`` for the home directory. For ``type`` of argparse."""
    return os.path.expanduser(text)


def add_debug(parser: argparse.ArgumentParser) -> None:
    """``--debug``."""
    parser.add_argument(
        DEBUG_FLAG, action='store_true', help='show the traceback of an error, not one line of it'
    )


def make_tool_parser(
    description: str | None,
    examples: str = '',
    formatter: type[argparse.HelpFormatter] = argparse.RawDescriptionHelpFormatter,
) -> argparse.ArgumentParser:
    """A parser for a tool that is run by `run_tool`.

    Args:
        description: What the tool does; its line breaks are kept.
        examples: Shown after the flags, as they are.
        formatter: Lays the help out.
    """
    # Run as `mmaselect train` or `python -m mmaselect train`, a tool is called that.
    program = Path(sys.argv[0])
    is_command = program.name == 'mmaselect' or program.parts[-2:] == ('mmaselect', '__main__.py')
    parser = argparse.ArgumentParser(
        prog=' '.join(['mmaselect', *sys.argv[1:2]]) if is_command else None,
        description=description,
        epilog=examples,
        formatter_class=formatter,
    )
    add_debug(parser)
    return parser


def run_tool(main: Callable[[Sequence[str]], None], argv: Sequence[str] | None = None) -> None:
    """Run a tool; what goes wrong is said in one line, unless ``--debug`` is among the flags.

    No file that the tool reads may run code, see :mod:`mmaselect.untrusted`; a tool with
    ``--trust-checkpoint`` lifts that itself.

    Called from Python, a tool's ``main`` raises as any function does: this is for the command line.

    Args:
        main: The tool's main function, which takes the command line.
        argv: The command line without the tool's name; that of this process by default.

    Raises:
        SystemExit: With the line, in place of any error.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        with only_weights():
            main(argv)
    except Exception as error:
        if DEBUG_FLAG in argv:
            raise
        line = f'{Path(sys.argv[0]).name}: error: {in_one_line(error)}'
        raise SystemExit(f'{line} ({DEBUG_FLAG} shows where)') from None


def in_one_line(error: BaseException) -> str:
    """The message of an error without line breaks; its kind, where it has no message."""
    # The text of a KeyError is the repr of its message.
    message = error.args[0] if isinstance(error, KeyError) and error.args else error
    return ' '.join(str(message).split()) or type(error).__name__
