# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""The ``.mim`` folder of mmaselect; all else about packaging is in ``pyproject.toml``.

MIM (and MMEngine's ``_base_ = ['mmaselect::...']``) look for configs, tools and
``model-index.yml`` in ``mmaselect/.mim``. A wheel gets copies there; an editable install gets links
into the source tree, so that an edited config is seen at once. Both are made by ``build_py``, which
every kind of install runs.
"""

import os
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
PACKAGE = 'mmaselect'
MIM_ENTRIES = ('configs', 'tools', 'model-index.yml')
NOT_SHIPPED = shutil.ignore_patterns('__pycache__', '*.pyc', '.*')


class BuildPyWithMim(build_py):
    """``build_py`` that also fills ``mmaselect/.mim``: links for editable installs, else copies."""

    def run(self):
        super().run()
        in_tree = getattr(self, 'editable_mode', False)
        parent = ROOT if in_tree else Path(self.build_lib)
        mim = parent / PACKAGE / '.mim'
        if mim.exists():
            shutil.rmtree(mim)
        mim.mkdir(parents=True)
        for name in MIM_ENTRIES:
            self._place(ROOT / name, mim / name, link=in_tree)

    def _place(self, source, target, link):
        if link:
            try:
                target.symlink_to(os.path.relpath(source, target.parent), source.is_dir())
                return
            except OSError as error:  # Windows without the right to make links
                self.warn(f'{target} is a copy, not a link ({error}): reinstall after changes')
        if source.is_dir():
            shutil.copytree(source, target, ignore=NOT_SHIPPED)
        else:
            shutil.copy2(source, target)

    def get_outputs(self, include_bytecode=True):
        outputs = super().get_outputs(include_bytecode)
        if getattr(self, 'editable_mode', False):
            return outputs
        mim = Path(self.build_lib) / PACKAGE / '.mim'
        return outputs + [str(path) for path in mim.rglob('*') if path.is_file()]


setup(cmdclass={'build_py': BuildPyWithMim})
