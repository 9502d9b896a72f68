# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""The closing lines of a training."""

from types import SimpleNamespace

import numpy as np
from mmengine.logging import MessageHub

from mmaselect.launch.summary import print_test_summary, summarize
from mmaselect.models import ASelecTDiT
from mmaselect.selection import Curve, CurvePoint, SelectionResult


def test_lines_are_those_of_the_run(tmp_path, tiny_dit):
    hub = MessageHub('test_lines_are_those_of_the_run')
    model = ASelecTDiT(tiny_dit, timestep=275)
    runner = SimpleNamespace(message_hub=hub, work_dir=str(tmp_path), model=model)
    assert summarize(runner) == 'timestep in use: 275 (given by the config or by a checkpoint)'

    for value in (10.0, 41.256):
        hub.update_scalar('val/mIoU', value)
    hub.update_scalar('val/time', 0.5)
    hub.update_scalar('train/loss', 1.0)
    curve = Curve('HighFrequencyRatio', 275, (CurvePoint(275, 0.4, 1.0, 0.5),))
    SelectionResult(
        275, 0.4, 1.0, 'HighFrequencyRatio', 'query', [3], 64, 1.0, 64, curve
    ).save(tmp_path / 'selection.json')  # fmt: skip
    (tmp_path / 'selection.png').touch()
    (tmp_path / 'last_checkpoint').write_text('iter_2.pth\n')
    assert summarize(runner).splitlines() == [
        'last validation: mIoU 41.26',
        'picked timestep: 275 (criterion HighFrequencyRatio, 64 images); '
        f'result: {tmp_path / "selection.json"}',
        f'plot of the pick: {tmp_path / "selection.png"}',
        'checkpoint: iter_2.pth',
    ]
    model.timestep = 300  # the files tell of another pick than the one in use
    hub.update_scalar('val/coco/bbox_mAP', 0.3127)
    assert summarize(runner).splitlines() == [
        'last validation: mIoU 41.26, coco/bbox_mAP 0.3127',
        'timestep in use: 300 (given by the config or by a checkpoint)',
        'checkpoint: iter_2.pth',
    ]


def test_a_test_ends_with_its_metrics_whatever_their_type(tiny_dit, capsys):
    model = ASelecTDiT(tiny_dit, timestep=275, blocks=[1, 3])
    runner = SimpleNamespace(model=model)
    metrics = {'mIoU': np.float32(52.617), 'mAcc': 60, 'confusion': np.zeros((2, 2))}
    print_test_summary(runner, 'iter_2.pth', metrics, ['masks', None])
    printed = capsys.readouterr().out
    assert 'mIoU 52.62, mAcc 60.00' in printed and 'confusion' not in printed
    assert 'timestep 275 (from the config), query of block 1, 3' in printed
    assert 'written: masks' in printed
