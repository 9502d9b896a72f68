# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Mask R-CNN on a frozen DiT: trained and tested by the tools on a data set in COCO's format."""

import importlib.util
import json
import pickle
from pathlib import Path

import pytest
from coco_digits import save_coco_digits, write_child_config
from detection import why_no_detection
from forks import run_script
from mmengine.config import Config

from mmaselect.launch.config import check_pyramid

ROOT = Path(__file__).resolve().parents[2]
BASE = ROOT / 'configs' / 'detection' / 'aselect_dit-tiny_mask-rcnn-sfp_1xb4-12e_coco-256.py'
NEEDS_DETECTION = pytest.mark.skipif(bool(why_no_detection()), reason=why_no_detection())


@pytest.fixture
def run(tmp_path):
    """Runs a script of the repository in a process of its own; what it prints."""

    def run(script, *arguments, code=0):
        return run_script(ROOT / script, *arguments, log=tmp_path / 'printed', code=code)

    return run


@NEEDS_DETECTION
def test_train_and_test(run, tmp_path):
    data = tmp_path / 'data'
    classes = save_coco_digits(data, dict(train=16, val=3), side=64, digits=(0, 1))
    config = tmp_path / 'child.py'
    write_child_config(config, BASE, data, classes, side=64, epochs=3)
    work_dir = tmp_path / 'work'
    few = ('num_images=4', 'timesteps=0:200:100')
    options = [f'model.backbone.selection.{option}' for option in few]
    output = run('tools/train.py', config, '--work-dir', work_dir, '--cfg-options', *options)
    assert 'A-SelecT picked timestep' in output and 'coco/bbox_mAP' in output
    assert {'selection.json', 'selection.html'} <= {path.name for path in work_dir.iterdir()}
    (scalars,) = work_dir.glob('*/vis_data/scalars.json')
    lines = [json.loads(line) for line in scalars.read_text().splitlines()]
    losses = [line['loss'] for line in lines if 'loss' in line]
    assert len(losses) == 12 and sum(losses[-3:]) < 0.85 * sum(losses[:3])

    checkpoint = work_dir / 'epoch_3.pth'
    metrics = tmp_path / 'metrics.json'
    run(
        'tools/test.py', config, checkpoint, '--work-dir', tmp_path / 'test',
        '--out', metrics, '--out-item', 'metrics', '--show-dir', tmp_path / 'painted',
    )  # fmt: skip
    found = json.loads(metrics.read_text())
    assert {'coco/bbox_mAP', 'coco/segm_mAP'} <= found.keys() and 0 <= found['coco/bbox_mAP'] <= 1
    assert len(list((tmp_path / 'painted').iterdir())) == 3


@NEEDS_DETECTION
def test_time_augmentation_of_boxes(run, tmp_path):
    """A detector without masks."""
    data = tmp_path / 'data'
    classes = save_coco_digits(data, dict(train=4, val=2), side=64, digits=(0, 1))
    config = tmp_path / 'child.py'
    write_child_config(config, BASE, data, classes, side=64, epochs=1)
    with config.open('a') as file:
        file.write(
            "model['type'] = 'FasterRCNN'\nmodel['backbone']['timestep'] = 50\n"
            "model['roi_head'].update(mask_head=None, mask_roi_extractor=None)\n"
            "val_evaluator['metric'] = 'bbox'\n"
        )
    run('tools/train.py', config, '--work-dir', tmp_path, '--no-validate')
    found = tmp_path / 'found.pkl'
    output = run(
        'tools/test.py', config, tmp_path / 'epoch_1.pth', '--work-dir', tmp_path, '--tta',
        '--out', found,
    )  # fmt: skip
    assert 'coco/bbox_mAP' in output
    entries = pickle.loads(found.read_bytes())
    assert len(entries) == 2 and {'bboxes', 'scores'} <= entries[0]['pred_instances'].keys()


def test_time_augmentation_merges_no_masks():
    spec = importlib.util.spec_from_file_location('tool_test', ROOT / 'tools' / 'test.py')
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    with pytest.raises(ValueError, match='and this model has a mask_head'):
        tool.set_tta(Config.fromfile(BASE), 'mmdet')


def test_a_plain_fpn_is_refused():
    config = Config.fromfile(BASE)
    check_pyramid(config)
    pyramid = Config.fromfile(
        BASE.with_name('aselect_dit-xl2-512_mask-rcnn-f2p_8xb2-12e_coco-1024.py')
    )
    check_pyramid(pyramid)
    fpn = pyramid.model.neck[1]
    for neck in (fpn, [fpn], dict(fpn, type='mmdet.PAFPN')):
        config.model.neck = neck
        with pytest.raises(ValueError, match='its levels would all be of one size'):
            check_pyramid(config)
    config.model.backbone = dict(type='ResNet', depth=50)
    check_pyramid(config)


@pytest.mark.skipif(not why_no_detection(), reason='MMDetection can be used here')
def test_advice_without_mmdetection(run, tmp_path):
    output = run('tools/train.py', BASE, '--work-dir', tmp_path, code=1)
    assert 'pip install -e ".[openmmlab,det]"' in output
