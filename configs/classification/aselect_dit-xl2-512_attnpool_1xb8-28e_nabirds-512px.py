# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
# A-SelecT's reference head on NABirds.
_base_ = [
    '../_base_/models/aselect_dit-xl2_attnpool.py',
    '../_base_/datasets/nabirds_512.py',
    '../_base_/schedules/cls_28e.py',
    '../_base_/default_runtime_cls.py',
]
model = dict(
    backbone=dict(calibration=_base_.calibration),
    head=dict(num_classes=_base_.num_classes),
)
