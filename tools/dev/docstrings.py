# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Docstrings for the documentation site: an extension of Griffe, named in ``mkdocs.yml``.

Docstrings of the package are Google's, with the few constructs of reStructuredText that editors and
OpenMMLab's own pages know. The site is Markdown.
"""

import re
from typing import Any

from griffe import Extension, GriffeError, Module, Object

ROLE = re.compile(r':(?:attr|class|data|exc|func|meth|mod|obj):`(?P<short>~)?(?P<name>[\w.]+)`')
LINK = re.compile(r'`(?P<text>[^`<]+) <(?P<url>https?://[^>`]+)>`_')
LITERAL_BLOCK = re.compile(r' ::$', re.MULTILINE)
EXAMPLE = re.compile(r'^Example:$', re.MULTILINE)


class Markdown(Extension):
    """Roles become references, links become links, examples a section of examples."""

    def on_package(self, *, pkg: Module, **kwargs: Any) -> None:
        """Rewrite the docstrings of a loaded package, before other extensions move its objects."""
        rewrite(pkg)


def rewrite(obj: Object) -> None:
    """Rewrite the docstrings of an object and of what it has."""
    for member in obj.members.values():
        if isinstance(member, Object):  # and not an alias
            rewrite(member)
    if obj.docstring is None:
        return

    def reference(match: re.Match[str]) -> str:
        name = match['name']
        text = name.rpartition('.')[2] if match['short'] else name
        target = find(obj, name)
        return f'<autoref optional identifier="{target}"><code>{text}</code></autoref>'

    text = ROLE.sub(reference, obj.docstring.value)
    text = LINK.sub(r'[\g<text>](\g<url>)', text)
    text = LITERAL_BLOCK.sub('', text)
    obj.docstring.value = EXAMPLE.sub('Examples:', text)


def find(obj: Object, name: str) -> str:
    """The full name of what a docstring names; the name itself if it is nobody's here."""
    scope: Object | None = obj
    while scope is not None:
        try:
            return str(scope[name].canonical_path)
        except (KeyError, GriffeError):
            scope = scope.parent
    try:
        return obj.resolve(name)
    except GriffeError:
        return name
