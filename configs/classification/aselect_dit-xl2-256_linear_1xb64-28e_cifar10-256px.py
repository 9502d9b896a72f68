# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
# Linear probe on CIFAR-10.
_base_ = [
    '../_base_/models/aselect_dit-xl2_linear.py',
    '../_base_/datasets/cifar10_256.py',
    '../_base_/schedules/cls_28e.py',
    '../_base_/default_runtime_cls.py',
]
model = dict(
    backbone=dict(
        pretrained='facebook/DiT-XL-2-256', calibration=_base_.calibration, channel_order='rgb'
    ),
    head=dict(num_classes=_base_.num_classes),
)
