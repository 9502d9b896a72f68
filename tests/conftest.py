# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Tiny models of the true architectures, real images, and a cache that no test shares."""

import gc
import os
import sys
import tarfile
from pathlib import Path

# Before torch is imported: workers of pytest-xdist share the cores.
os.environ.setdefault('OMP_NUM_THREADS', '1')

import numpy as np
import pytest
import torch
from mmengine.registry import DefaultScope
from PIL import Image
from tiny_dit import save_tiny_dit

_frozen_modules = 0


def pytest_runtest_setup():
    """Take what was imported out of the garbage collector's sight.

    MMEngine collects garbage for each data set that it builds, which takes most of a second where
    all that the tests import is looked through.
    """
    global _frozen_modules
    if len(sys.modules) > _frozen_modules + 200:
        _frozen_modules = len(sys.modules)
        gc.collect()
        gc.freeze()


@pytest.fixture(autouse=True)
def _isolated(tmp_path, monkeypatch):
    """No test reads or writes the user's cache, and each starts from the same seed."""
    monkeypatch.setenv('MMASELECT_CACHE', str(tmp_path / 'cache'))
    # What a tool or a Runner that ran in this process may have left: a launcher's variables, and
    # the scope that bare names in configs are looked up in.
    for name in (
        *('RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT'),
        *('TORCH_FORCE_WEIGHTS_ONLY_LOAD', 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'),
    ):
        monkeypatch.delenv(name, raising=False)
    DefaultScope._instance_dict.clear()
    torch.manual_seed(0)
    np.random.seed(0)  # the toolboxes draw from it


@pytest.fixture(scope='session')
def tiny_dit(tmp_path_factory) -> str:
    """Pipeline folder of a pixel-space DiT: 6 blocks, width 16, token stride 4, 32 x 32."""
    return str(save_tiny_dit(tmp_path_factory.mktemp('tiny_dit'), latent=False))


@pytest.fixture(scope='session')
def tiny_latent_dit(tmp_path_factory) -> str:
    """Pipeline folder of a latent DiT with a VAE: 6 blocks, width 16, token stride 4, 32 x 32."""
    return str(save_tiny_dit(tmp_path_factory.mktemp('tiny_latent_dit'), latent=True))


@pytest.fixture(scope='session')
def photos(tmp_path_factory) -> str:
    """A folder of 24 crops, 48 x 40, of photographs that come with scikit-image."""
    from skimage import data

    folder = tmp_path_factory.mktemp('photos')
    pictures = [data.astronaut(), data.coffee(), data.chelsea()]
    rng = np.random.default_rng(0)
    for number in range(24):
        picture = pictures[number % 3]
        top = rng.integers(picture.shape[0] - 40)
        left = rng.integers(picture.shape[1] - 48)
        crop = picture[top : top + 40, left : left + 48]
        Image.fromarray(crop).save(folder / f'{number:02d}.png')
    return str(folder)


def find_shared_data() -> Path | None:
    """The project's real data, if this machine has it."""
    candidates = [Path(__file__).resolve().parents[2] / 'shared' / 'data']
    if os.environ.get('MMASELECT_DATA'):
        candidates.insert(0, Path(os.environ['MMASELECT_DATA']))
    return next((path for path in candidates if (path / 'ade20k_mini').is_dir()), None)


@pytest.fixture(scope='session')
def real_data():
    """Folder of a real data set by name, unpacked once outside the repository.

    ``real_data('cifar10')``, ``real_data('camvid11')``, ``real_data('ade20k_mini')``.
    """
    shared = find_shared_data()

    def folder(name: str) -> Path:
        if shared is None:
            pytest.skip(
                f'{name} is not here: set MMASELECT_DATA to the folder that holds it '
                f'(or its .tar.xz)'
            )
        if (shared / name).is_dir():
            return shared / name
        root = Path.home() / '.cache' / 'mmaselect' / 'data'
        if not (root / name).is_dir():
            # To a name of this process first: a test run in parallel must not meet half of it.
            root.mkdir(parents=True, exist_ok=True)
            partial = root / f'.{name}.{os.getpid()}'
            with tarfile.open(shared / f'{name}.tar.xz') as archive:
                archive.extractall(partial, filter='data')
            try:
                (partial / name).rename(root / name)
            except OSError:
                assert (root / name).is_dir()
        return root / name

    return folder
