# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
# DeepLabV3+ on the DiT that ships with the package, CamVid at 240x180.
_base_ = [
    '../_base_/models/aselect_dit-tiny_deeplabv3plus.py',
    '../_base_/datasets/camvid_240x180.py',
    '../_base_/schedules/seg_2k.py',
    '../_base_/default_runtime_seg.py',
]
model = dict(
    backbone=dict(
        calibration=_base_.calibration,
        # What training sees; at the 32x32 of its own training, CamVid would be a blur.
        selection=dict(image_size=96),
    ),
)
