# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Check the API pages of a built site: public names stand once, signatures are wrapped.

    python tools/dev/check_api.py site

``make docs`` runs it after the build. It reads the built pages, for what a reader sees counts.
"""

import ast
import html
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
#: Characters of a line of a signature; ``line_length`` of ``mkdocs.yml`` breaks it earlier.
WIDEST = 100
HEADING = re.compile(
    r'<div class="doc doc-object doc-(class|function)">\s*'
    r'<h\d id="([\w.]+)" class="doc doc-heading"'
)
SIGNATURE = re.compile(r'<div class="doc-signature highlight">(.*?)</div>', re.DOTALL)
#: A reference of reStructuredText that tools/dev/docstrings.py has not rewritten.
ROLE = re.compile(r':(?:attr|class|data|exc|func|meth|mod|obj):')
SHOWN = re.compile(r'^::: ([\w.]+)$', re.MULTILINE)


def main(site: str) -> None:
    """Print what is wrong, and leave with status 1 if anything is."""
    pages = sorted(Path(site, 'docs', 'api').glob('*.html'))
    wrong = list(problems({page.name: page.read_text(encoding='utf-8') for page in pages}))
    print(*wrong, sep='\n', end='\n' if wrong else '')
    sys.exit(bool(wrong))


def problems(pages: dict[str, str]) -> Iterator[str]:
    """What is wrong with some pages, which are given as HTML by name."""
    if not pages:
        yield 'there are no API pages: build the site first (make docs)'
        return
    headings = [heading for text in pages.values() for heading in HEADING.findall(text)]
    classes = {path for kind, path in headings if kind == 'class'}
    for name in sorted(public_names()):
        found = [path for _, path in headings if path.rpartition('.')[2] == name]
        found = sorted(path for path in found if path.rpartition('.')[0] not in classes)
        if len(found) != 1:
            yield f'{name} stands {len(found)} times and not once: {", ".join(found) or "nowhere"}'
    for page, text in pages.items():
        yield from (f'{page}: {role} is not a link' for role in sorted(set(ROLE.findall(text))))
        for signature in SIGNATURE.findall(text):
            lines = html.unescape(re.sub(r'<[^>]*>', '', signature)).splitlines()
            yield from (
                f'{page}: {len(line)} characters in a line of a signature: {line.strip()}'
                for line in lines
                if len(line) > WIDEST
            )


def public_names() -> set[str]:
    """Classes and functions in the ``__all__`` of the packages that a page shows."""
    shown = {
        name
        for page in (ROOT / 'docs' / 'api').glob('*.md')
        for name in SHOWN.findall(page.read_text(encoding='utf-8'))
    }
    offered: set[str] = set()
    defined: set[str] = set()  # a constant, or the name of a type, has no text of its own
    for file in (ROOT / 'mmaselect').rglob('*.py'):
        for node in ast.parse(file.read_text(encoding='utf-8')).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                defined.add(node.name)
            elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == '__all__':
                package = '.'.join(file.parent.relative_to(ROOT).parts)
                if file.name == '__init__.py' and package in shown:
                    offered |= set(ast.literal_eval(node.value))
    return offered & defined


if __name__ == '__main__':
    main(*sys.argv[1:])
