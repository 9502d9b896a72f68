# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""``mmaselect data``: the data sets of the configs, listed, gotten and counted."""

from __future__ import annotations

import argparse

from mmaselect.cli.arguments import new_parser

EXAMPLES = """
examples:
  # what there is: size, license, whether a form must be signed
  mmaselect data list

  # download, check, unpack and count, into data/Flowers102
  mmaselect data get flowers

  # the same from the archive that a form gave
  mmaselect data get nabirds --archives ~/Downloads

  # count what is in data/CUB_200_2011
  mmaselect data check cub

The configs read data/; run the command where you train, or give --root and link the folder there.
If `get` is stopped, run it again: it resumes. It leaves a complete data set or none.
"""


def add_parser(commands: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """The subcommand's parser."""
    parser = new_parser(
        commands,
        'data',
        help='get and check the data sets of the configs',
        description='Download the data sets that the configs read, in the layout that the configs '
        'expect, and count what is there.',
        examples=EXAMPLES,
    )
    parser.add_argument(
        'action', choices=('list', 'get', 'check'), help='show what there is, download, or count'
    )
    parser.add_argument(
        'names', nargs='*', metavar='NAME', help='data sets; `mmaselect data list` has the names'
    )
    parser.add_argument(
        '--root', default='data', metavar='FOLDER', help='folder of all data sets; default: data'
    )
    parser.add_argument(
        '--archives',
        metavar='FOLDER',
        help='archives that you downloaded; default: .archives in --root, where downloads go',
    )
    parser.add_argument(
        '--keep-archives', action='store_true', help='keep downloaded archives after unpacking'
    )
    return parser


def run(args: argparse.Namespace) -> None:
    """List, get or check.

    Raises:
        ValueError: If a name is missing or unknown, or counts are wrong.
    """
    from mmaselect.fetch import DATA_SETS, check_data, find_data_set, get_data
    from mmaselect.fetch.get import differences

    if args.action == 'list':
        _print_list(args.names)
        return
    if not args.names:
        raise ValueError(
            f'`data {args.action}` needs a name: {", ".join(DATA_SETS)}; `data list` tells more'
        )
    wrong = []
    for data in [find_data_set(name) for name in args.names]:
        if args.action == 'get':
            print(f'{data.title}: license: {data.license}; page: {data.page}')
            print(get_data(data, args.root, args.archives, args.keep_archives))
        found = check_data(data, args.root)
        counted = ', '.join(f'{found.get(what, 0)} {what}' for what in data.expected)
        print(f'{data.title}: {counted}')
        if difference := differences(data, found):
            wrong.append(f'{data.title} is not complete: {difference}')
    if wrong:
        raise ValueError('; '.join(wrong))


def _print_list(names: list[str]) -> None:
    """The table of data sets; for those that are named, where they come from and their terms."""
    from mmaselect.fetch import DATA_SETS, find_data_set

    if names:
        for data in map(find_data_set, names):
            lines = [f'{data.name}: {data.title}', f'  page: {data.page}']
            lines += [f'  license: {data.license}', f'  goes to: data/{data.folder}']
            lines += [f'  by hand: {data.by_hand}'] if data.by_hand else []
            lines += [f'  holds: {", ".join(f"{n} {what}" for what, n in data.expected.items())}']
            for archive in data.archives:
                lines += [
                    f'  {archive.name}: {archive.url or "by hand"}, {size_of(archive.size)}, '
                    f'checksum {archive.checksum or "unknown"}'
                ]
            print('\n'.join(lines))
        return
    rows = [('name', 'data set', 'download', 'by hand', 'folder')] + [
        (
            data.name,
            data.title,
            size_of(data.size),
            'yes' if data.by_hand else 'no',
            f'data/{data.folder}',
        )
        for data in DATA_SETS.values()
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print('  '.join(cells).rstrip())
    print('`mmaselect data list NAME` has its page, license, addresses and checksums')


def size_of(count: int | None) -> str:
    """Bytes in a unit that people read.

    Example:
        >>> size_of(1150585339), size_of(502), size_of(None)
        ('1.15 GB', '502 B', 'unknown')
    """
    if count is None:
        return 'unknown'
    for unit, name in ((10**9, 'GB'), (10**6, 'MB'), (10**3, 'kB')):
        if count >= unit:
            return f'{count / unit:.3g} {name}'
    return f'{count} B'
