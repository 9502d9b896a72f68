# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
# Mask R-CNN with ViTDet's simple feature pyramid on DiT-XL/2-512, COCO.
_base_ = [
    '../_base_/models/aselect_dit-xl2_mask-rcnn-sfp.py',
    '../_base_/datasets/coco_instance_1024.py',
    '../_base_/schedules/det_12e.py',
    '../_base_/default_runtime_det.py',
]
model = dict(backbone=dict(calibration=_base_.calibration))
