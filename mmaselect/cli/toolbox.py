# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""``mmaselect train`` and ``mmaselect test``: the tools of the repository, without a checkout."""

from __future__ import annotations

import argparse
import runpy
from pathlib import Path

from mmaselect.cli.arguments import new_parser

#: What each of them does.
TOOLS = {
    'train': 'train the model of a config; needs OpenMMLab',
    'test': 'test a checkpoint of a config; needs OpenMMLab',
}


def tool_path(name: str) -> Path:
    """A tool that comes with the package: in its ``.mim`` folder, or in the checkout around it.

    Raises:
        FileNotFoundError: If the package was installed without its tools.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package / '.mim' / 'tools', package.parent / 'tools'):
        if (folder / f'{name}.py').is_file():
            return folder / f'{name}.py'
    raise FileNotFoundError(
        f'this installation of mmaselect lacks tools/{name}.py: install it again with pip'
    )


def add_parser(commands: argparse._SubParsersAction, name: str) -> argparse.ArgumentParser:
    """The subcommand's parser, which hands everything on to the tool."""
    parser = new_parser(
        commands,
        name,
        help=TOOLS[name],
        description=f'{TOOLS[name]}. `mmaselect {name} -h` shows the flags of the tool.',
        examples='',
    )
    return parser


def run_toolbox(name: str, argv: list[str]) -> None:
    """Run a tool with its own command line."""
    runpy.run_path(str(tool_path(name)))['main'](argv)
