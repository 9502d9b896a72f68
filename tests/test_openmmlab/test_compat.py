# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""The check of the installed OpenMMLab stack, and the bases that it makes resolvable."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from mmengine.config.utils import MODULE2PACKAGE

from mmaselect.launch.config import get_toolbox, load_config
from mmaselect.openmmlab.compat import (
    check_toolboxes,
    installed_distributions,
    map_config_scopes,
    multimodal_is_broken,
)

ROOT = Path(__file__).resolve().parents[2]
ORIGINALS = {'mmseg': 'mmsegmentation', 'mmpretrain': 'mmpretrain'}


def add_distribution(folder, name, version='9.9'):
    """The metadata that an installer leaves of a distribution."""
    info = folder / f'{name.replace("-", "_")}-{version}.dist-info'
    info.mkdir(parents=True)
    (info / 'METADATA').write_text(f'Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n')


@pytest.fixture
def other_stack(tmp_path, monkeypatch):
    """Installs (its metadata) the MMSegmentation distribution that is not installed."""
    installed = installed_distributions('mmseg')
    assert len(installed) == 1
    other = {'onedl-mmsegmentation': 'mmsegmentation', 'mmsegmentation': 'onedl-mmsegmentation'}
    add_distribution(tmp_path, other[installed[0]])
    monkeypatch.syspath_prepend(tmp_path)


def test_one_stack_is_fine():
    check_toolboxes('mmseg', 'mmpretrain')


def test_both_stacks_at_once(other_stack):
    check_toolboxes('mmpretrain')
    with pytest.raises(ImportError) as error:
        check_toolboxes('mmseg', 'mmpretrain')
    message = str(error.value)
    assert 'onedl-mmsegmentation and mmsegmentation are installed together' in message
    assert 'pip uninstall -y' in message and 'pip install -e ".[onedl]"' in message


@pytest.mark.parametrize('toolbox', ['mmseg', 'mmpretrain'])
def test_scopes_map_to_the_installed_distribution(toolbox, monkeypatch):
    monkeypatch.setitem(MODULE2PACKAGE, toolbox, ORIGINALS[toolbox])
    map_config_scopes()
    assert [MODULE2PACKAGE[toolbox]] == installed_distributions(toolbox)


@pytest.mark.parametrize(
    'base, toolbox, backbone',
    [
        ('mmseg::upernet/upernet_r50_4xb4-160k_ade20k-512x512.py', 'mmseg', 'ResNetV1c'),
        ('mmpretrain::resnet/resnet50_8xb32_in1k.py', 'mmpretrain', 'ResNet'),
    ],
)
def test_bases_of_the_toolboxes(base, toolbox, backbone, tmp_path, monkeypatch):
    monkeypatch.setitem(MODULE2PACKAGE, toolbox, ORIGINALS[toolbox])
    child = tmp_path / 'child.py'
    child.write_text(f'_base_ = [{base!r}]\n')
    config = load_config(child, {'model.backbone.depth': 101})
    assert get_toolbox(config) == toolbox
    assert (config.model.backbone.type, config.model.backbone.depth) == (backbone, 101)


def test_config_without_scope(tmp_path):
    (tmp_path / 'a.py').write_text('model = dict()\n')
    with pytest.raises(ValueError, match="is None; it must be 'mmseg'"):
        get_toolbox(load_config(tmp_path / 'a.py'))


@pytest.mark.parametrize(
    ('mmpretrain', 'transformers', 'broken'),
    [('1.2.0', '5.24.0', True), ('1.2.0', '4.53.3', False), ('1.3.6', '5.24.0', False)],
)
def test_multimodal_models_that_cannot_be_imported(
    mmpretrain, transformers, broken, tmp_path, monkeypatch
):
    versions = dict(mmpretrain=mmpretrain, transformers=transformers, pycocotools='2.0.11')
    for name, version in versions.items():
        add_distribution(tmp_path, name, version)
    monkeypatch.syspath_prepend(tmp_path)
    assert multimodal_is_broken() is broken


def test_mmpretrain_is_imported_all_the_same():
    """Where pycocotools and a transformers of today are installed beside MMPretrain 1.2."""
    if not multimodal_is_broken():
        pytest.skip('MMPretrain, pycocotools and transformers fit together here')
    code = 'import mmaselect, mmpretrain.models; print(mmpretrain.models.VisionTransformer)'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=False)
    assert 'vision_transformer' in done.stdout, done.stderr


def test_detection_without_compiled_ops(tmp_path, monkeypatch):
    add_distribution(tmp_path, 'mmdet')
    (tmp_path / 'mmdet.py').touch()
    monkeypatch.syspath_prepend(tmp_path)
    if find_spec('mmcv._ext') is not None:
        pytest.skip('MMCV has its compiled ops here')
    with pytest.raises(ImportError, match=r'without them\. Run: .*\.\[openmmlab,det\]'):
        check_toolboxes('mmdet')
