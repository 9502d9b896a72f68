# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""What gets installed: as a wheel, and as an editable install, by the real pip."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import mmaselect

ROOT = Path(__file__).resolve().parents[1]
SOURCES = [
    *('setup.py', 'pyproject.toml', 'MANIFEST.in', 'LICENSE', 'README*', 'model-index.yml'),
    *('mmaselect', 'configs', 'tools', 'requirements'),
]


def run(*command, cwd):
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        env={name: value for name, value in os.environ.items() if name != 'PYTHONPATH'},
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


def copy_sources(target):
    """The files that packaging reads, so that nothing is written into the checkout."""
    ignore = shutil.ignore_patterns('__pycache__', '.mim', '*.egg-info')
    for path in (path for pattern in SOURCES for path in ROOT.glob(pattern)):
        if path.is_dir():
            shutil.copytree(path, target / path.name, ignore=ignore)
        else:
            shutil.copy2(path, target / path.name)
    return target


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    """A wheel made from a source distribution, which thereby has to be complete."""
    folder = tmp_path_factory.mktemp('wheel')
    source = copy_sources(tmp_path_factory.mktemp('source'))
    code = f'from setuptools import build_meta; print(build_meta.build_sdist({str(folder)!r}))'
    sdist = run(sys.executable, '-c', code, cwd=source).splitlines()[-1]
    pip = (sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-deps', '--no-build-isolation')
    run(*pip, folder / sdist, '--wheel-dir', folder, cwd=folder)
    (path,) = folder.glob('mmaselect-*.whl')
    with zipfile.ZipFile(path) as archive:
        yield archive


def test_wheel_holds_what_mim_looks_for(wheel):
    names = set(wheel.namelist())
    for folder in ('configs', 'tools'):
        files = {
            path.relative_to(ROOT).as_posix()
            for path in (ROOT / folder).rglob('*')
            if path.is_file() and '__pycache__' not in path.parts
        }
        assert files and {f'mmaselect/.mim/{name}' for name in files} <= names
    assert 'mmaselect/.mim/model-index.yml' in names


def test_wheel_holds_the_package_and_nothing_else(wheel):
    names = wheel.namelist()
    for path in (ROOT / 'mmaselect').rglob('*'):
        kinds = ('.py', '.typed', '.j2')
        shipped = path.suffix in kinds or 'weights' in path.relative_to(ROOT).parts
        if path.is_file() and shipped and '.mim' not in path.parts:
            assert path.relative_to(ROOT).as_posix() in names
    assert {name.split('/')[0] for name in names} == {
        'mmaselect',
        f'mmaselect-{mmaselect.__version__}.dist-info',
    }
    assert not [name for name in names if '__pycache__' in name]
    assert any(re.search(r'dist-info/(licenses/)?LICENSE$', name) for name in names)


def test_wheel_brings_the_command(wheel):
    (name,) = (name for name in wheel.namelist() if name.endswith('dist-info/entry_points.txt'))
    assert 'mmaselect = mmaselect.cli:main' in wheel.read(name).decode().splitlines()


def test_editable_install_links_into_the_sources(tmp_path):
    source = tmp_path / 'source'
    source.mkdir()
    copy_sources(source)
    venv.create(tmp_path / 'env', with_pip=False)
    python = tmp_path / 'env' / 'bin' / 'python'
    site = run(python, '-c', 'import site; print(site.getsitepackages()[0])', cwd=tmp_path).strip()
    # The dependencies are those of this interpreter; the package itself is not taken from it.
    (Path(site) / 'dependencies.pth').write_text(sysconfig.get_path('purelib') + '\n')
    pip = (sys.executable, '-m', 'pip', '--quiet', '--python', python, 'install')
    run(*pip, '--no-deps', '--no-build-isolation', '-e', source, cwd=tmp_path)

    mim = source / 'mmaselect' / '.mim'
    assert sorted(path.name for path in mim.iterdir()) == ['configs', 'model-index.yml', 'tools']
    for path in mim.iterdir():
        assert path.is_symlink() and path.resolve() == source / path.name

    (source / 'configs' / 'mine.py').write_text('answer = 42\n')
    (tmp_path / 'child.py').write_text("_base_ = ['mmaselect::demo/../mine.py']\n")
    code = (
        'import mmaselect; from mmaselect.launch.config import load_config; '
        "print(mmaselect.__file__, load_config('child.py').answer)"
    )
    output = run(python, '-c', code, cwd=tmp_path).split()
    assert output == [str(source / 'mmaselect' / '__init__.py'), '42']
    listed = run(python.with_name('mmaselect'), 'list', '*dit-xl-2-256', cwd=tmp_path)
    assert listed.splitlines()[-1].split()[:2] == ['facebook/DiT-XL-2-256', 'dit']


def test_mim_index_names_every_config():
    listed = set()
    for metafile in yaml.safe_load((ROOT / 'model-index.yml').read_text())['Import']:
        content = yaml.safe_load((ROOT / metafile).read_text())
        collections = {collection['Name'] for collection in content['Collections']}
        for model in content['Models']:
            assert Path(model['Config']).stem == model['Name']
            assert model['In Collection'] in collections
            listed.add(model['Config'])
    folders = (ROOT / 'configs' / name for name in ('classification', 'detection', 'segmentation'))
    there = {
        path.relative_to(ROOT).as_posix() for folder in folders for path in folder.glob('*.py')
    }
    assert there and listed == there


def pins():
    """The tested versions, by distribution."""
    files = (ROOT / 'requirements' / name for name in ('tested-onedl.txt', 'docs.txt'))
    text = '\n'.join(path.read_text() for path in files)
    return dict(re.findall(r'^([\w-]+)==(\S+)$', text, re.MULTILINE))


def test_tested_versions_are_allowed_and_complete(wheel):
    (metadata,) = (name for name in wheel.namelist() if name.endswith('.dist-info/METADATA'))
    lines = wheel.read(metadata).decode().splitlines()
    requirements = [
        Requirement(line.split(':', 1)[1]) for line in lines if line.startswith('Requires-Dist:')
    ]
    tested = pins()
    assert len(tested) > 15
    for extra in ('', 'onedl', 'test', 'docs'):
        wanted = [
            requirement
            for requirement in requirements
            if (requirement.marker is None and not extra)
            or (requirement.marker is not None and requirement.marker.evaluate({'extra': extra}))
        ]
        assert wanted, extra
        for requirement in wanted:
            assert requirement.name in tested, f'{requirement.name} has no tested version'
            assert requirement.specifier.contains(tested[requirement.name]), str(requirement)


def test_linter_is_the_same_everywhere():
    hooks = yaml.safe_load((ROOT / '.pre-commit-config.yaml').read_text())['repos'][0]['hooks']
    versions = {hook['additional_dependencies'][0] for hook in hooks if 'ruff' in hook['id']}
    assert versions == {f'ruff=={pins()["ruff"]}'}


def test_images_and_environments_install_what_is_tested():
    """The Dockerfile and the conda environment: their pins, files, extras and Python exist."""
    project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
    docker = (ROOT / 'Dockerfile').read_text().replace('\\\n', ' ')
    steps = [line.split(None, 1) for line in docker.splitlines() if line and line[0] != '#']
    known = {'FROM', 'ARG', 'RUN', 'WORKDIR', 'COPY', 'USER', 'ENV', 'CMD'}
    assert {name for name, _ in steps} == known
    assert steps[0][0] == 'FROM' and steps[-1] == [
        'CMD', '["mmaselect", "--help"]'
    ]  # fmt: skip
    assert max(n for n, s in enumerate(steps) if 'pip install' in s[1]) < steps.index(
        ['USER', 'user']
    )  # fmt: skip
    for step in (words for name, words in steps if name == 'RUN'):
        subprocess.run(['sh', '-n', '-c', step], check=True)
    environment = yaml.safe_load((ROOT / 'environment.yml').read_text())
    *packages, pip = environment['dependencies']
    pythons = [re.search(r'python:([\d.]+)', docker)[1], packages[0].partition('=')[2]]
    for python in pythons:
        assert SpecifierSet(project['requires-python']).contains(python)
    conda = ' '.join(f'pip install {line}' for line in pip['pip'])
    (tested,) = {re.search(r'-r (requirements/\S+)', text)[1] for text in (docker, conda)}
    (extras,) = {re.search(r'-e "?\.\[([\w,]+)\]', text)[1] for text in (docker, conda)}
    assert f'pip install -e ".[{extras}]"' in (ROOT / 'docs' / 'install.md').read_text()
    # All that the last step wants is there by then, in a version that was tested.
    pinned = dict(re.findall(r'^([\w-]+)==(\S+)$', (ROOT / tested).read_text(), re.MULTILINE))
    wanted = [*project['dependencies']]
    for extra in extras.split(','):
        wanted += project['optional-dependencies'][extra]
    for requirement in map(Requirement, wanted):
        assert requirement.name in pinned, f'{requirement} has no version in {tested}'
        assert requirement.specifier.contains(pinned[requirement.name]), str(requirement)
    # PyTorch comes first, by itself.
    (chosen,) = re.findall(r'grep -E .*? requirements/\S+', docker)
    first = subprocess.run(
        ['sh', '-c', chosen], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert first.stdout.split() == [f'{name}=={pinned[name]}' for name in ('torch', 'torchvision')]
