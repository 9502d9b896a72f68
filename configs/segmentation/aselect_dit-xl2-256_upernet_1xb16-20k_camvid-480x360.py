# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
# UperNet on a frozen DiT-XL/2-256, CamVid at 480x360, 20k iterations.
_base_ = [
    '../_base_/models/aselect_dit-xl2_upernet.py',
    '../_base_/datasets/camvid_480x360.py',
    '../_base_/schedules/seg_20k.py',
    '../_base_/default_runtime_seg.py',
]
model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=dict(pretrained='facebook/DiT-XL-2-256', calibration=_base_.calibration),
    decode_head=dict(num_classes=11),
    auxiliary_head=dict(num_classes=11),
    # Windows of the size that the transformer was trained on.
    test_cfg=dict(mode='slide', crop_size=_base_.crop_size, stride=(171, 171)),
)
