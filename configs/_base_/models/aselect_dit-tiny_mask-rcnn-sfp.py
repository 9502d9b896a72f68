# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
# A narrow Mask R-CNN with ViTDet's simple feature pyramid on the DiT that ships with the package.
_base_ = ['../backbones/dit-tiny.py', '../heads/mask_rcnn.py']
model = dict(
    backbone=_base_.base_backbone,
    # The maps' stride is 4; the strides 8, 16 and 32 are made of it, and 64 of the last. Channels
    # of a diffusion transformer differ in scale by far, hence the norm.
    neck=[
        dict(type='mmaselect.BatchNormNeck', in_channels=[_base_.width]),
        dict(
            type='mmaselect.SimpleFeaturePyramid',
            in_channels=_base_.width,
            out_channels=64,
            rescales=[1, 0.5, 0.25, 0.125],
            num_outs=5,
        ),
    ],
    rpn_head=dict(in_channels=64, feat_channels=64),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=64),
        bbox_head=dict(in_channels=64, fc_out_channels=128),
        mask_roi_extractor=dict(out_channels=64),
        mask_head=dict(in_channels=64, conv_out_channels=64),
    ),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=500, max_per_img=200), rcnn=dict(sampler=dict(num=128))
    ),
    test_cfg=dict(rpn=dict(nms_pre=500, max_per_img=200)),
)
