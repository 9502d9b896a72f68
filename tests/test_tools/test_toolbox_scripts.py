# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""The toolboxes' own scripts and inferencers on configs of ours."""

import runpy
import subprocess
import sys
from pathlib import Path

import cv2
import mmpretrain
import mmseg
import numpy as np
import pytest
import sklearn
import torch
from mmengine.config import Config
from packaging.version import Version
from PIL import Image

from mmaselect.openmmlab.compat import multimodal_is_broken

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
SCRIPTS = {
    'mmseg': Path(mmseg.__file__).parent / '.mim' / 'tools' / 'analysis_tools',
    'mmpretrain': Path(mmpretrain.__file__).parent / '.mim' / 'tools' / 'visualization',
}
TOOLS = CONFIGS.parent / 'tools'


@pytest.fixture
def script(monkeypatch):
    """Runs a script of a toolbox in this process, as ``python SCRIPT ...`` does."""

    def run(toolbox, name, *arguments):
        path = SCRIPTS[toolbox] / f'{name}.py'
        if not path.is_file():
            pytest.skip(f'{toolbox} is installed without its tools')
        monkeypatch.setattr(sys, 'argv', [str(path), *map(str, arguments)])
        runpy.run_path(str(path), run_name='__main__')

    return run


@pytest.fixture
def streets(tmp_path):
    """A data set in CamVid's layout: four images and label maps of noise."""
    rng = np.random.default_rng(0)
    for part in ('train', 'val', 'test'):
        for kind, depth in (('images', 3), ('annotations', 1)):
            folder = tmp_path / 'streets' / kind / part
            folder.mkdir(parents=True)
            for n in range(2):
                noise = rng.integers(0, 11 if depth == 1 else 256, (90, 120, depth))
                suffix = 'png' if depth == 1 else 'jpg'
                Image.fromarray(noise.squeeze().astype(np.uint8)).save(folder / f'{n}.{suffix}')
    return tmp_path / 'streets'


@pytest.fixture
def segmentation(streets, tiny_dit, tmp_path):
    """A child of a config of ours that imports nothing by itself, as a toolbox's would."""
    path = tmp_path / 'segmentation.py'
    base = CONFIGS / 'segmentation' / 'aselect_dit-tiny_bnlinear_1xb8-2k_camvid-240x180.py'
    config = Config.fromfile(base)
    config.model.backbone.update(pretrained=tiny_dit, blocks=[1, 3], timestep=100)
    config.model.neck.in_channels = [16, 16]
    config.model.decode_head.update(in_channels=[16, 16], in_index=[0, 1], channels=32)
    for part in ('train', 'val', 'test'):
        config[f'{part}_dataloader'].dataset.data_root = str(streets)
        config[f'{part}_dataloader'].update(num_workers=0, batch_size=2)
    config.train_cfg.update(max_iters=1)
    config.default_hooks.checkpoint.interval = 1
    config.pop('custom_imports')
    config.dump(path)
    return path


@pytest.mark.skipif(
    Version(mmseg.__version__) < Version('1.3') and Version(cv2.__version__) >= Version('5'),
    reason='the script of MMSegmentation 1.2 draws on arrays that OpenCV 5 does not take',
)
def test_browse_dataset_of_mmsegmentation(segmentation, tmp_path, script):
    script('mmseg', 'browse_dataset', segmentation, '--output-dir', tmp_path / 'o', '--not-show')
    assert len(list((tmp_path / 'o').glob('*.jpg'))) == 2


@pytest.mark.skipif(
    multimodal_is_broken(), reason='MMPretrain 1.2 has to be told to leave out its own models'
)
@pytest.mark.parametrize('fresh', [False, pytest.param(True, marks=pytest.mark.thorough)])
def test_what_a_run_dumps_works_with_the_inferencer(segmentation, tmp_path, capfd, fresh):
    """``MMSegInferencer``, here and in a process that has not imported mmaselect."""
    work = tmp_path / 'work'
    runpy.run_path(str(TOOLS / 'train.py'))['main'](
        [str(segmentation), '--work-dir', str(work), '--no-validate']
    )
    dumped = work / 'segmentation.py'
    assert (
        'mmaselect' in Config.fromfile(dumped, import_custom_modules=False).custom_imports.imports
    )
    code = (
        'from mmseg.apis import MMSegInferencer\n'
        f'run = MMSegInferencer({str(dumped)!r}, device="cpu",\n'
        f'                      weights={str(work / "iter_1.pth")!r}, show_progress=False)\n'
        f'found = run({str(tmp_path / "streets/images/test/0.jpg")!r})\n'
        'print("labels", found["predictions"].shape, found["predictions"].max() < 11)\n'
    )
    capfd.readouterr()
    if fresh:
        code = f'import sys; assert "mmaselect" not in sys.modules\n{code}'
        subprocess.run([sys.executable, '-c', code], check=True)
    else:
        exec(code, {})
    assert 'labels (90, 120) True' in capfd.readouterr().out


@pytest.mark.skipif(
    Version(mmpretrain.__version__) < Version('1.3')
    and Version(sklearn.__version__) >= Version('1.7'),
    reason='the script of MMPretrain 1.2 gives an argument that scikit-learn 1.7 has renamed',
)
def test_tsne_of_mmpretrain(tiny_dit, photos, tmp_path, script):
    """``vis_tsne``: a picture of pooled features."""
    base = CONFIGS / 'classification' / 'aselect_dit-tiny_linear_1xb128-10e_cifar10-folders-32px.py'
    config = Config.fromfile(base)
    for n, path in enumerate(sorted(Path(photos).glob('*.png'))):
        for part in ('train', 'test', 'val'):
            folder = tmp_path / 'data' / part / ['a', 'b', 'c'][n % 3]
            folder.mkdir(parents=True, exist_ok=True)
            (folder / path.name).symlink_to(path)
    config.model.backbone.update(pretrained=tiny_dit, blocks=[2], timestep=100)
    config.model.neck[1].input_features = 16
    config.model.head.in_channels = 16
    data = dict(
        type='CustomDataset', data_root=str(tmp_path / 'data' / 'train'),
        pipeline=[dict(type='LoadImageFromFile'), dict(type='Resize', scale=(32, 32)),
                  dict(type='PackInputs')],
    )  # fmt: skip
    for part in ('train', 'test', 'val'):
        loader = config[f'{part}_dataloader']
        loader.dataset, loader.num_workers, loader.batch_size = data, 0, 8
        loader.pop('persistent_workers', None)
    config.dump(tmp_path / 'config.py')
    from mmengine.registry import DefaultScope
    from mmpretrain.registry import MODELS

    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(dict(config.model, data_preprocessor=config.get('data_preprocessor')))
    checkpoint = tmp_path / 'model.pth'
    torch.save(dict(state_dict=model.state_dict(), meta={}), checkpoint)
    script('mmpretrain', 'vis_tsne', tmp_path / 'config.py', '--checkpoint', checkpoint, '--device',
           'cpu', '--work-dir', tmp_path, '--perplexity', 5, '--n-iter', 250)  # fmt: skip
    (picture,) = tmp_path.glob('tsne_*/feat_2.png')
    assert np.asarray(Image.open(picture)).std() > 10
