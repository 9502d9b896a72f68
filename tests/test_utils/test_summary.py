# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""The closing lines of a training."""

import json
from types import SimpleNamespace

from mmengine.logging import MessageHub

from mmaselect.utils.summary import summarize


def test_lines_are_those_of_the_run(tmp_path):
    hub = MessageHub('test_lines_are_those_of_the_run')
    runner = SimpleNamespace(message_hub=hub, work_dir=str(tmp_path))
    assert summarize(runner) == ''

    for value in (10.0, 41.256):
        hub.update_scalar('val/mIoU', value)
    hub.update_scalar('val/time', 0.5)
    hub.update_scalar('train/loss', 1.0)
    result = dict(timestep=275, criterion='HighFrequencyRatio', num_images=64)
    (tmp_path / 'selection.json').write_text(json.dumps(result))
    (tmp_path / 'selection.png').touch()
    (tmp_path / 'last_checkpoint').write_text('iter_2.pth\n')
    assert summarize(runner).splitlines() == [
        'last validation: mIoU 41.26',
        'picked timestep: 275 (criterion HighFrequencyRatio, 64 images); '
        f'result: {tmp_path / "selection.json"}',
        f'plot of the pick: {tmp_path / "selection.png"}',
        'checkpoint: iter_2.pth',
    ]
