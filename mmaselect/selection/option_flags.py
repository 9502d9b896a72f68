# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Flags of commands, and the table in the docs, made from the fields of the selection's options.

This module imports no PyTorch, so that a command shows its ``--help`` at once.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields
from typing import Any

from mmaselect.checks import is_sequence
from mmaselect.selection.defaults import PRESET_HELP, PRESET_NOTES, PRESETS
from mmaselect.selection.options import SelectionOptions


def add_option_flags(
    parser: argparse._ActionsContainer, otherwise: str = '', preset: bool = True
) -> None:
    """Add a flag for each option that has one, such as ``--num-images``.

    A flag that the user leaves out is None in the parsed arguments.

    Args:
        parser: A parser, or a group of one.
        otherwise: Where a value comes from before the option's default, for the help.
        preset: Add ``--selection NAME`` for the presets.
    """
    if preset:
        parser.add_argument(
            '--selection',
            choices=PRESETS,
            help=f'preset to start from, which the other flags change. {PRESET_HELP}',
        )
    for option in fields(SelectionOptions):
        flag = option.metadata['flag']
        if flag is not None:
            parser.add_argument(
                flag_name(option),
                help=f'{option.metadata["help"]}; default: {otherwise}{default_in_words(option)}',
                **flag,
            )


def given_options(args: argparse.Namespace) -> dict[str, Any]:
    """The options that the user gave by flags, as :meth:`SelectionOptions.replaced` takes them."""
    names = {'preset': 'selection', **{name: name for name in SelectionOptions.names()}}
    given = {name: getattr(args, flag, None) for name, flag in names.items()}
    return {name: value for name, value in given.items() if value is not None}


def flag_name(option: Field[Any]) -> str:
    """The flag of an option, such as ``--num-images``."""
    return '--' + option.name.replace('_', '-')


def default_in_words(option: Field[Any]) -> str:
    """An option's default, as a user writes it.

    Example:
        >>> [default_in_words(option) for option in fields(SelectionOptions)][:3]
        ['InstanceSensitivity', 'PaperHFR', '0:1000:25']
    """
    if option.metadata['default']:
        return str(option.metadata['default'])
    factory = option.default_factory
    value = option.default if factory is MISSING else factory()
    return ', '.join(map(_in_words, value)) if is_sequence(value) else _in_words(value)


def _in_words(value: Any) -> str:
    return str(_type_or_value(value))


def _type_or_value(value: Any) -> Any:
    return value['type'] if isinstance(value, Mapping) else value


def options_table() -> str:
    """All options as a table in Markdown."""
    rows = ['| option | what it is | default | flag |', '|---|---|---|---|']
    for option in fields(SelectionOptions):
        flag = '' if option.metadata['flag'] is None else f'`{flag_name(option)}`'
        default = default_in_words(option)
        rows.append(f'| `{option.name}` | {option.metadata["help"]} | {default} | {flag} |')
    return '\n'.join(rows) + '\n'


def presets_table() -> str:
    """All presets as a table in Markdown."""
    rows = ['| preset | what it is | options |', '|---|---|---|']
    for name, options in PRESETS.items():
        words = ', '.join(f'`{key}={_type_or_value(value)!r}`' for key, value in options.items())
        rows.append(f'| `{name}` | {PRESET_NOTES[name]} | {words} |')
    return '\n'.join(rows) + '\n'
