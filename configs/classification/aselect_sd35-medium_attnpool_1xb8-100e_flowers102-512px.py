# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
# Made from mmaselect/leaderboard/paper.py by tools/dev/write_generated.py.
# Oxford Flowers 102 with a frozen Stable Diffusion 3.5 medium: the paper's head where the
# default criterion picks: block, feature and timestep.
_base_ = [
    '../_base_/models/aselect_sd35-medium_attnpool.py',
    '../_base_/datasets/flowers102_512.py',
    '../_base_/schedules/cls_100e.py',
    '../_base_/default_runtime_cls.py',
]
model = dict(
    backbone=dict(blocks='auto', feature='auto', calibration=_base_.calibration),
    head=dict(num_classes=_base_.num_classes),
)
