# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Pages as a browser shows them: headless Chromium, where there is one."""

import shutil
import subprocess
from pathlib import Path

import pytest

NAMES = ('chromium', 'chromium-browser', 'google-chrome')


def dom_of(page, tmp_path, fragment='', script=''):
    """The document after its scripts have run, as HTML.

    Args:
        page: HTML file.
        tmp_path: Where the browser may write.
        fragment: Fragment of the address, after ``#``.
        script: JavaScript that runs last, as a user who clicks would.
    """
    browser = next(filter(None, map(shutil.which, NAMES)), None)
    if browser is None:
        pytest.skip('there is no Chromium here')
    opened = tmp_path / 'opened.html'
    text = Path(page).read_text(encoding='utf-8')
    # Errors of the page's own scripts are part of the document, where a test finds them.
    listener = (
        '<script>addEventListener("error", (e) => { document.documentElement.dataset.error = '
        'e.message; });</script>'
    )
    text = text.replace('<head>', f'<head>{listener}', 1)
    opened.write_text(text.replace('</body>', f'<script>{script}</script></body>'))
    done = subprocess.run(
        [browser, '--headless=new', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage',
         f'--user-data-dir={tmp_path / "profile"}', '--virtual-time-budget=2000', '--dump-dom',
         opened.as_uri() + ('#' + fragment if fragment else '')],
        capture_output=True, text=True, timeout=240, check=True,
    )  # fmt: skip
    return done.stdout
