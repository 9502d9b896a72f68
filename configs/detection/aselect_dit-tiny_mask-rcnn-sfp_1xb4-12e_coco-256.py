# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
# Mask R-CNN with ViTDet's simple feature pyramid on the DiT that ships with the package, COCO at
# 256 pixels.
_base_ = [
    '../_base_/models/aselect_dit-tiny_mask-rcnn-sfp.py',
    '../_base_/datasets/coco_instance_256.py',
    '../_base_/schedules/det_12e.py',
    '../_base_/default_runtime_det.py',
]
model = dict(
    backbone=dict(
        calibration=_base_.calibration,
        # Nearer to what training sees than the 32x32 of its own training.
        selection=dict(image_size=128),
    ),
)
