# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
# Mask R-CNN with an FPN on four depths of a frozen DiT-XL/2, brought to four strides before it.
_base_ = ['../backbones/dit-xl2.py', '../heads/mask_rcnn.py']
model = dict(
    backbone=dict(_base_.base_backbone, blocks=[8, 11, 14, 17]),
    neck=[
        # MMSegmentation's: without it, the FPN's levels would all have the stride 16.
        dict(
            type='mmseg.Feature2Pyramid',
            embed_dim=_base_.width,
            rescales=[4, 2, 1, 0.5],
            norm_cfg=dict(type='BN', requires_grad=True),
        ),
        dict(type='FPN', in_channels=[_base_.width] * 4, out_channels=256, num_outs=5),
    ],
)
