# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
# Linear probe on CUB-200-2011.
_base_ = [
    '../_base_/models/aselect_dit-xl2_linear.py',
    '../_base_/datasets/cub_512.py',
    '../_base_/schedules/cls_100e.py',
    '../_base_/default_runtime_cls.py',
]
model = dict(
    backbone=dict(calibration=_base_.calibration),
    head=dict(num_classes=_base_.num_classes),
)
# The batch that the normalization is taken over.
train_dataloader = dict(batch_size=64)
