# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
# Mask2Former on DiT-XL/2-512, ADE20K, 160k iterations.
_base_ = [
    '../_base_/models/aselect_dit-xl2_mask2former.py',
    '../_base_/datasets/ade20k_512x512.py',
    '../_base_/schedules/seg_160k.py',
    '../_base_/default_runtime_seg.py',
]
model = dict(backbone=dict(calibration=_base_.calibration))
train_dataloader = dict(batch_size=2)
no_decay = dict(decay_mult=0.0)
optim_wrapper = dict(
    optimizer=dict(lr=1e-4, weight_decay=0.05),
    clip_grad=dict(max_norm=0.01, norm_type=2),
    paramwise_cfg=dict(
        custom_keys=dict(query_embed=no_decay, query_feat=no_decay, level_embed=no_decay),
    ),
)
