# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Find turns of phrase that readers stumble over, in pages, docstrings, comments and messages.

    python tools/dev/prose.py            # every place, and exit status 1 if there is any
    python tools/dev/prose.py --counts   # one line for each pattern

The patterns and better versions are the table in CONTRIBUTING.md, which `--table` prints.
"""

from __future__ import annotations

import argparse
import re
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SUFFIXES = ('.md', '.py', '.j2', '.yml', '.ipynb')
#: Files that must name the patterns.
LEFT_OUT = ('tools/dev/prose.py', 'CONTRIBUTING.md')

#: Pattern, what it looks like, and a better version.
PATTERNS: tuple[tuple[str, str, str], ...] = (
    (
        r'(?<!here )\b(?:is|are|was|were) none\b(?! of| else)|(?<!here )\b(?:is|are) no '
        r'(?!longer|more|such)[a-z]+',
        '"it is none", "is no pipeline folder"',
        '"there are no files", "is not a pipeline folder"',
    ),
    (
        r'(?:^|["\'#(:] ?|\s)Of (?:the|a|an|each|its) (?:[a-z]+ ){0,4}?[a-z]+(?:[.:;,]|$)',
        '"seed: Of the noise."',
        '"seed: Seed of the noise."',
    ),
    (r'\bbeside\b', '"scored beside it"', '"scored in addition", "next to"'),
    (r'\bSee that\b', '"See that a file can be read"', '"Check that the file can be read"'),
    (
        r'\bgo(?:es)? on (?:where|with)\b|\bwent on where\b',
        '"goes on where it was"',
        '"resumes"',
    ),
    (r'\bto be told from\b|\btold apart from\b', '"not to be told from 0"', '"indistinguishable"'),
    (
        r': What (?:it|they) ',
        '"lora_scale: What it is multiplied by."',
        '"lora_scale: Factor applied to the LoRA weights."',
    ),
    (
        r'(?<!here )\b(?:is|are) nothing\b',
        '"is nothing torch.compile takes"',
        '"torch.compile rejected ..."',
    ),
    (r'\bgives? way to\b', '"the backbone gives way to ours"', '"replace the backbone"'),
    (
        r'\bwhoever\b|\bwho wants\b',
        '"whoever takes some"',
        '"users who need some"',
    ),
)


def text_files() -> list[Path]:
    """Files of the repository that people read."""
    listed = subprocess.run(
        ['git', 'ls-files'], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return [
        ROOT / name
        for name in listed.stdout.splitlines()
        if name.endswith(SUFFIXES)
        and not name.startswith('tests/')
        and name not in LEFT_OUT
        and (ROOT / name).is_file()
        and not (ROOT / name).is_symlink()
    ]


def findings(text: str) -> Iterator[tuple[int, int, str]]:
    """Line number, pattern number and the line itself, of each place in a text."""
    for number, line in enumerate(text.splitlines(), 1):
        for index, (pattern, _, _) in enumerate(PATTERNS):
            if re.search(pattern, line):
                yield number, index, line.strip()


def table() -> str:
    """The patterns as the table in CONTRIBUTING.md."""
    rows = ['| avoid | write |', '|---|---|']
    return '\n'.join(rows + [f'| {bad} | {good} |' for _, bad, good in PATTERNS])


def main(argv: Sequence[str] | None = None) -> int:
    """Print the findings."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('files', nargs='*', type=Path, help='default: all text of the repository')
    parser.add_argument('--counts', action='store_true', help='count, and show no lines')
    parser.add_argument('--table', action='store_true', help='print the table of patterns')
    args = parser.parse_args(argv)
    if args.table:
        print(table())
        return 0
    counts: Counter[int] = Counter()
    for path in args.files or text_files():
        if not path.is_file():
            continue
        for number, index, line in findings(path.read_text(encoding='utf-8')):
            counts[index] += 1
            if not args.counts:
                print(f'{path}:{number}: {PATTERNS[index][1]}: {line[:120]}')
    if args.counts:
        for index, (_, bad, _) in enumerate(PATTERNS):
            print(f'{counts[index]:5d}  {bad}')
    print(f'{counts.total()} places')
    return 1 if counts else 0


if __name__ == '__main__':
    raise SystemExit(main())
