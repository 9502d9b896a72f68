# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Public names stand once in the API: an extension of Griffe, named in ``mkdocs.yml``.

A package offers in its ``__all__`` what its modules define, and the package above often offers it
again. A reader wants to find a name once, under the path that is imported. All its other paths lead
there, as anchors.
"""

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from griffe import Alias, Extension, GriffeLoader, Module, Object

ROOT = Path(__file__).resolve().parents[2]
#: What a page shows: the name of a package or module.
SHOWN = re.compile(r'^::: ([\w.]+)$', re.MULTILINE)


class Once(Extension):
    """Of all paths of a name, its page keeps the shortest one."""

    def on_package(self, *, pkg: Module, loader: GriffeLoader, **kwargs: Any) -> None:
        """Take the other paths of each public name out of a loaded package."""
        if pkg.path != 'mmaselect':
            return
        loader.resolve_aliases(implicit=True)  # each alias now knows what it stands for
        pages = [
            name
            for page in sorted((ROOT / 'docs' / 'api').glob('*.md'))
            for name in SHOWN.findall(page.read_text(encoding='utf-8'))
        ]
        paths: dict[str, dict[str, Object | Alias]] = defaultdict(dict)
        for module in modules_of(pkg):
            for name in module.exports or ():
                member = module.members[str(name)]
                target = member.final_target if isinstance(member, Alias) else member
                paths[target.path] |= {member.path: member, target.path: target}
        for defined, members in paths.items():
            page = max((page for page in pages if is_in(defined, page)), key=len, default=None)
            if page is None:
                continue
            kept = min((path for path in members if is_in(path, page)), key=depth)
            for path, member in members.items():
                if path != kept and member.parent is not None:
                    del member.parent.members[member.name]


def modules_of(package: Module) -> Iterator[Module]:
    """The packages and modules in a package; itself left out, for no page shows it."""
    for module in package.modules.values():
        if not module.is_alias:
            yield module
            yield from modules_of(module)


def is_in(path: str, module: str) -> bool:
    """Whether a dotted path leads into a module."""
    return path.startswith(f'{module}.')


def depth(path: str) -> int:
    """Names before the last one in a dotted path."""
    return path.count('.')
