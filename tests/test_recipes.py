# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""The recipes of CONTRIBUTING.md, followed to the letter in a copy of the repository."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from mutations import working_copy

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / 'CONTRIBUTING.md').read_text(encoding='utf-8')
#: The family that is taken away and added again.
FAMILY = 'auraflow'
#: What the recipes ask for in files that are there: file, what stands in it once, what goes there.
EDITS = {
    'criterion': [
        (
            'mmaselect/selection/criteria/__init__.py',
            'from mmaselect.selection.criteria.base import',
            'from mmaselect.selection.criteria.contrast import Contrast\n'
            'from mmaselect.selection.criteria.base import',
        ),
        ('mmaselect/selection/criteria/__init__.py', '__all__ = [', "__all__ = [\n    'Contrast',"),
        (
            'tests/test_selection/test_criteria/test_criterion_base.py',
            'CONFIGS = [',
            "CONFIGS = [\n    {'type': 'Contrast'},",
        ),
        (
            'benchmarks/criteria_cases.py',
            "    dict(type='CrossSpectrumHFR'),\n",
            "    dict(type='CrossSpectrumHFR'),\n    dict(type='Contrast'),\n",
        ),
    ],
    'view': [
        (
            'mmaselect/images/views.py',
            '        noise: ``',
            '        gray: Take the colors out of both views.\n        noise: ``',
        ),
        (
            'mmaselect/images/views.py',
            '    flip: bool = False',
            '    flip: bool = False\n    gray: bool = False',
        ),
        (
            'mmaselect/images/views.py',
            "        flag('views.flip', self.flip)",
            "        flag('views.flip', self.flip)\n        flag('views.gray', self.gray)",
        ),
        (
            'mmaselect/images/views.py',
            '        views.append(',
            '        if options.gray:\n            view = F.rgb_to_grayscale(view, 3)\n'
            '        views.append(',
        ),
        (
            'tests/test_images/test_views.py',
            'def test_no_mirror_unless_asked_for():',
            'def test_gray_views_lie_where_colored_ones_do():\n'
            '    gray = make_views(noise_image(), 32, ViewOptions(gray=True), (0, 1))\n'
            '    colored = make_views(noise_image(), 32, ViewOptions(), (0, 1))\n'
            '    np.testing.assert_array_equal(gray.boxes, colored.boxes)\n'
            '    spread = [np.ptp(views.pixels, axis=3).max() for views in (gray, colored)]\n'
            '    assert spread[0] == 0 < spread[1]\n'
            '\n\ndef test_no_mirror_unless_asked_for():',
        ),
        (
            'tests/test_selection/test_sweep.py',
            'flip=False, noise=',
            'flip=False, gray=False, noise=',
        ),
    ],
    'config': [],
}

pytestmark = pytest.mark.thorough


def section(kind):
    """A recipe's text."""
    return re.search(rf'^## Add a {kind}\n(.*?)^## ', TEXT, re.MULTILINE | re.DOTALL)[1]


def files_of(kind):
    """Path to text of the files that a recipe shows."""
    blocks = re.findall(r'^ *```python title="(.+?)"\n(.*?)^ *```', section(kind), re.M | re.S)
    return {path: textwrap.dedent(code) for path, code in blocks}


class Tree:
    """A copy of the repository."""

    def __init__(self, folder):
        self.root = working_copy(ROOT, folder)

    def run(self, *command):
        """Run Python with the copy's package; what it printed, once it has worked."""
        done = subprocess.run(
            [sys.executable, *map(str, command)],
            cwd=self.root,
            env={**os.environ, 'PYTHONPATH': str(self.root), 'OMP_NUM_THREADS': '1'},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-6000:]
        return done.stdout

    def run_commands(self, kind, name='', only=''):
        """Run the commands that end a recipe.

        Args:
            kind: The recipe.
            name: What stands where the recipe says NAME.
            only: A further ``-k`` of pytest.
        """
        (block,) = re.findall(r'^```sh\n(.*?)^```', section(kind), re.MULTILINE | re.DOTALL)
        for line in block.splitlines():
            python, *command = shlex.split(line.replace('NAME', name), comments=True)
            assert python == '.venv/bin/python'
            if only and 'pytest' in command:
                command += ['-k', only]
            self.run(*command)

    def lint(self):
        self.run('-m', 'ruff', 'check', '.')
        self.run('-m', 'ruff', 'format', '--check', '.')


@pytest.fixture(scope='module')
def tree(tmp_path_factory):
    """The repository with what the recipes show, and with the edits that they ask for."""
    tree = Tree(tmp_path_factory.mktemp('recipes') / 'copy')
    for kind, edits in EDITS.items():
        for path, text in files_of(kind).items():
            assert not (tree.root / path).exists()
            (tree.root / path).write_text(text, encoding='utf-8')
        for path, old, new in edits:
            text = (tree.root / path).read_text(encoding='utf-8')
            assert text.count(old) == 1, (path, old)
            (tree.root / path).write_text(text.replace(old, new), encoding='utf-8')
    tree.run('-m', 'ruff', 'check', '--fix', '-q', 'mmaselect/selection/criteria/__init__.py')
    return tree


def test_shown_files():
    assert {kind: len(files_of(kind)) for kind in EDITS} == dict(criterion=2, view=0, config=1)


def test_lint_and_types(tree):
    tree.lint()
    tree.run('-m', 'mypy')


@pytest.mark.parametrize(
    ('kind', 'only'),
    [
        ('criterion', 'Contrast or contrast or two_processes'),
        ('view', ''),
        ('config', '1xb128-28e_cifar10-32px or names_every_config or up_to_date'),
    ],
)
def test_commands(tree, kind, only):
    tree.run_commands(kind, only=only)


def test_family(tmp_path):
    """One that is taken away and added again leaves the repository as it was."""
    tree = Tree(tmp_path / 'copy')
    files = [
        f'mmaselect/diffusion/families/{FAMILY}.py',
        f'tests/test_diffusion/test_families/test_{FAMILY}.py',
    ]
    generated = ['mmaselect/model_zoo.json', 'docs/families.md']
    for path in files:
        (tree.root / path).unlink()
    tree.run('tools/dev/write_generated.py', '--models')
    for path in generated:
        assert (tree.root / path).read_bytes() != (ROOT / path).read_bytes()
    for path in files:
        shutil.copy(ROOT / path, tree.root / path)
    tree.run_commands('family', FAMILY, only=f'{FAMILY} or {FAMILY.capitalize()} or every')
    for path in generated:
        assert (tree.root / path).read_bytes() == (ROOT / path).read_bytes()
    tree.lint()
