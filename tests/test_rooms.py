# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""The rooms of the package: imports run one way, and the core runs without OpenMMLab."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / 'mmaselect'
#: From the ground up: a room imports rooms before it, never one behind it.
ROOMS = (
    *(
        'version',
        'install',
        'checks',
        'logs',
        'registry',
        'files',
        'row_checks',
        'untrusted',
        'terminal',
    ),
    *('fetch', 'images', 'diffusion', 'model_zoo', 'selection', 'report', 'look', 'apis'),
    *('openmmlab', 'models', 'datasets', 'engine', 'launch'),
    *('leaderboard', 'analysis', 'pretraining', 'cli'),
)
#: Rooms that work without OpenMMLab.
CORE = ROOMS[: ROOMS.index('openmmlab')]
OPENMMLAB = ('mmengine', 'mmcv', 'mmseg', 'mmpretrain', 'mmdet')


def imported(tree):
    """Modules that a file imports, those for type checkers left out."""
    skipped = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == 'TYPE_CHECKING'
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, 'imports are absolute'
            whole = node.module == 'mmaselect'
            yield from (f'mmaselect.{name.name}' for name in node.names) if whole else [node.module]
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names)


def files():
    for path in sorted(PACKAGE.rglob('*.py')):
        room = path.relative_to(PACKAGE).parts[0].removesuffix('.py')
        if room not in ('.mim', '__init__', '__main__'):
            yield room, path


def test_every_room_is_in_the_order():
    assert {room for room, _ in files()} == set(ROOMS)


def test_imports_run_one_way():
    back = []
    for room, path in files():
        for module in imported(ast.parse(path.read_text())):
            if module.startswith('mmaselect.'):
                other = module.split('.')[1]
                if other != room and ROOMS.index(other) >= ROOMS.index(room):
                    back.append(f'{path.relative_to(ROOT)} imports {module}')
    assert not back


def test_core_knows_no_toolbox():
    found = [
        f'{path.relative_to(ROOT)} imports {module}'
        for room, path in files()
        if room in CORE
        for module in imported(ast.parse(path.read_text()))
        if module.split('.')[0] in OPENMMLAB
    ]
    assert not found


def test_map_in_contributing():
    """The table lists the folders among the rooms, in their order."""
    text = (ROOT / 'CONTRIBUTING.md').read_text()
    listed = re.findall(r'^\| `(\w+)/` \|', text, flags=re.MULTILINE)
    assert listed == [room for room in ROOMS if (PACKAGE / room).is_dir()]


BLOCKED = f"""
import importlib.machinery, sys
found = importlib.machinery.PathFinder.find_spec
def find_spec(name, *rest):
    return None if name.split('.')[0] in {OPENMMLAB} else found(name, *rest)
importlib.machinery.PathFinder.find_spec = staticmethod(find_spec)
"""


def run_blocked(code, *arguments):
    """Run code in a process where no toolbox can be imported."""
    return subprocess.run(
        [sys.executable, '-c', BLOCKED + code, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )


FACES = """
import numpy as np, torch
from mmaselect import FeatureExtractor, list_models, select_timestep
from mmaselect.apis import FeaturesOnly, TransformersBackbone, load_features
from mmaselect.apis.sklearn import DiTFeatures
from mmaselect.cli import main
folder, out = sys.argv[1:]
tiny = 'mmaselect://dit_digits'
grid = dict(timesteps=[0, 500])
assert tiny in list_models()
photos = np.random.default_rng(0).integers(0, 255, (4, 28, 28, 3), np.uint8)
extract = FeatureExtractor(tiny, 'auto', calibration=photos, selection=grid)
assert extract(photos)[2, 'query'].shape[0] == 4
assert len(FeaturesOnly(tiny, timestep=100)(torch.zeros(1, 3, 28, 28))) == 1
assert TransformersBackbone(tiny, timestep=100)(torch.zeros(1, 3, 28, 28)).feature_maps
assert DiTFeatures(tiny, timestep=100).fit(photos).transform(photos).shape[0] == 4
main(['list'])
main(['select', folder, '--pretrained', tiny, '--timesteps', '0,500', '--out', f'{out}/select'])
main(['look', folder, '--pretrained', tiny, '--timesteps', '0,500', '--out', f'{out}/look.html'])
main(['features', folder, '--pretrained', tiny, '--timestep', '100', '--out', f'{out}/features'])
assert len(load_features(f'{out}/features')) == 4
assert not {'mmengine', 'mmcv'} & set(sys.modules)
try:
    import mmaselect
    mmaselect.ASelecTDiT
except ImportError as error:
    print('backbone:', error)
"""


def test_core_runs_without_openmmlab(tmp_path, monkeypatch):
    from PIL import Image

    monkeypatch.setenv('MMASELECT_CACHE', str(tmp_path / 'cache'))
    (tmp_path / 'images').mkdir()
    for number in range(4):
        Image.new('RGB', (28, 28), (60 * number, 9, 9)).save(tmp_path / f'images/{number}.png')
    done = run_blocked(FACES, tmp_path / 'images', tmp_path)
    assert done.returncode == 0, done.stderr
    assert '`mmengine` is needed' in done.stdout
    assert (tmp_path / 'select/selection.html').is_file()


@pytest.mark.parametrize('room', ['models', 'engine', 'datasets', 'launch'])
def test_rooms_of_the_toolboxes_say_what_is_missing(room):
    done = run_blocked(f'import mmaselect.{room}')
    assert done.returncode == 1
    assert 'ImportError: `mmengine` is needed and none of onedl-mmengine' in done.stderr
