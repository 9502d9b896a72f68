# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
# Mask2Former on the DiT that ships with the package, CamVid at 240x180.
_base_ = [
    '../_base_/models/aselect_dit-tiny_mask2former.py',
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
no_decay = dict(decay_mult=0.0)
optim_wrapper = dict(
    optimizer=dict(lr=5e-4),
    clip_grad=dict(max_norm=0.01, norm_type=2),
    paramwise_cfg=dict(
        custom_keys=dict(query_embed=no_decay, query_feat=no_decay, level_embed=no_decay),
    ),
)
