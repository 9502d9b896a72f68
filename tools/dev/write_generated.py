# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Write the files that are made from others: the table of models in the docs."""

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path

from mmaselect.files import write_atomically
from mmaselect.model_zoo import families_table

ROOT = Path(__file__).resolve().parents[2]


def models_in_docs() -> str:
    """``docs/families.md`` with the table of ``mmaselect/model_zoo.py``."""
    text = (ROOT / 'docs' / 'families.md').read_text(encoding='utf-8')
    start, end = '<!-- models -->\n\n', '\n<!-- /models -->'
    if text.count(start) != 1 or text.count(end) != 1:
        raise ValueError(f'docs/families.md must have {start!r} and {end!r}, once each')
    return re.sub(f'{start}.*?{end}', lambda _: start + families_table() + end, text, flags=re.S)


#: File, from the root of the repository, to what makes its text.
GENERATED: dict[str, Callable[[], str]] = {'docs/families.md': models_in_docs}


def outdated() -> dict[str, str]:
    """Files that differ from what would be written, with the text that they should have."""
    texts = {name: make() for name, make in GENERATED.items()}
    return {
        name: text
        for name, text in texts.items()
        if not (ROOT / name).is_file() or (ROOT / name).read_text(encoding='utf-8') != text
    }


def main() -> None:
    """Write what is outdated, or only say so."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--check', action='store_true', help='write nothing; exit with 1 if stale')
    args = parser.parse_args()
    stale = outdated()
    for name, text in stale.items():
        print(f'{name} is out of date' if args.check else f'wrote {name}')
        if not args.check:
            write_atomically(ROOT / name, text)
    sys.exit(1 if args.check and stale else 0)


if __name__ == '__main__':
    main()
