# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""The pages of the documentation site: a hook of MkDocs, named in ``mkdocs.yml``.

MkDocs wants all pages in one folder. Ours lie next to what they describe, so the site gets them
under their own paths: a relative link then means the same in a checkout and on the site. A link to
a module of the package leads to its API page, a link to another source file or folder to a page
that shows it.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
#: The end of a Markdown link: path and anchor. Web addresses and bare anchors do not match.
LINK = re.compile(r'\]\((?!\w+:|#)([^)\s#]+)(#[^)\s]*)?\)')
SHOWN_AS_IT_IS = ('.md', '.png')
#: Suffix of a file that a page can show to the language that it is colored as.
LANGUAGES = {'.py': 'python', '.sh': 'sh', '.txt': 'text', '.yml': 'yaml'}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Replace the files of ``docs/`` by the pages of the navigation and what they link to."""
    for file in [file for file in files if file.src_dir == config.docs_dir]:
        files.remove(file)
    pages = list(pages_of(config.nav))
    shown = {name for name in pages if (ROOT / name).is_file()}
    for name in shown.copy():
        for link, _ in LINK.findall((ROOT / name).read_text(encoding='utf-8')):
            target = (ROOT / name).parent.joinpath(link).resolve()
            if target.is_file() and target.suffix in SHOWN_AS_IT_IS:
                shown.add(target.relative_to(ROOT).as_posix())
            elif (uri := source_page(target)) and files.get_file_from_path(uri) is None:
                content, hidden = listing(target), InclusionLevel.NOT_IN_NAV
                files.append(File.generated(config, uri, content=content, inclusion=hidden))
    styles = {name for name in config.extra_css if (ROOT / name).is_file()}  # plugins add theirs
    for name in sorted(shown | styles):
        files.append(File(name, str(ROOT), config.site_dir, config.use_directory_urls))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links to what is not a page to the page that shows it."""

    def lead(match: re.Match[str]) -> str:
        link, anchor = match[1].rstrip('/'), match[2] or ''
        target = (ROOT / page.file.src_uri).parent.joinpath(link).resolve()
        if module := module_of(target):
            return f'][{module}]'
        if (target / 'README.md').is_file():
            return f']({link}/README.md{anchor})'
        return f']({link}.md)' if source_page(target) else match[0]

    return LINK.sub(lead, markdown)


def pages_of(nav: Any) -> Iterator[str]:
    """The pages that a navigation names, from top to bottom."""
    if isinstance(nav, str):
        yield nav
    else:
        for part in nav.values() if isinstance(nav, dict) else nav:
            yield from pages_of(part)


def module_of(target: Path) -> str | None:
    """The dotted name of a module or sub-package of ours; None for anything else."""
    is_module = target.suffix == '.py' or (target / '__init__.py').is_file()
    if not is_module or not target.is_relative_to(ROOT / 'mmaselect') or not target.exists():
        return None
    return '.'.join(target.relative_to(ROOT).with_suffix('').parts)


def source_page(target: Path) -> str | None:
    """Where a page that shows a source file or folder goes; None if it has a page already."""
    if not target.exists() or module_of(target) or (target / 'README.md').is_file():
        return None
    if target.suffix in SHOWN_AS_IT_IS:
        return None
    return f'{target.relative_to(ROOT).as_posix()}.md'


def listing(target: Path) -> str:
    """A page that shows a file, or all files of a folder."""
    if target.suffix == '.ipynb':
        return notebook(target)
    title = f'# `{target.relative_to(ROOT).as_posix()}`\n'
    files = [target] if target.is_file() else sorted(target.rglob('*.*'))
    parts = [title]
    for path in files:
        if path.suffix not in LANGUAGES:
            continue
        heading = f'## `{path.relative_to(target)}`\n\n' if target.is_dir() else ''
        text = path.read_text(encoding='utf-8')
        parts.append(f'{heading}````{LANGUAGES[path.suffix]}\n{text}````\n')
    return '\n'.join(parts)


def notebook(target: Path) -> str:
    """A notebook as Markdown: its cells, and the outputs that are saved in it."""
    parts = []
    for cell in json.loads(target.read_text(encoding='utf-8'))['cells']:
        source = ''.join(cell['source'])
        parts.append(source if cell['cell_type'] == 'markdown' else f'```python\n{source}\n```')
        for output in cell.get('outputs', []):
            data = output.get('data', {})
            if 'image/png' in data:
                picture = ''.join(data['image/png']).replace('\n', '')
                parts.append(f'<img alt="" src="data:image/png;base64,{picture}">')
            elif 'text/html' in data:
                parts.append(re.sub(r'\n\s*', ' ', ''.join(data['text/html'])))
            else:
                text = ''.join(output.get('text', data.get('text/plain', '')))
                parts.append(f'```text\n{text.rstrip()}\n```')
    return '\n\n'.join(parts)
