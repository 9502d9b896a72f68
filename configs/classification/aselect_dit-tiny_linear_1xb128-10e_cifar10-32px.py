# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
# Linear probe on CIFAR-10 with the DiT that ships with the package: minutes on a CPU.
_base_ = [
    '../_base_/models/aselect_dit-tiny_linear.py',
    '../_base_/datasets/cifar10_32.py',
    '../_base_/schedules/cls_28e.py',
    '../_base_/default_runtime_cls.py',
]
model = dict(backbone=dict(calibration=_base_.calibration, channel_order='rgb'))
param_scheduler = dict(T_max=10, end=10)
train_cfg = dict(max_epochs=10)
