# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
# Mask R-CNN with ViTDet's simple feature pyramid on one block of a frozen DiT-XL/2.
_base_ = ['../backbones/dit-xl2.py', '../heads/mask_rcnn.py']
model = dict(
    backbone=_base_.base_backbone,
    # The maps' stride is 16; the strides 4, 8, 16 and 32 are made of it, and 64 of the last.
    # Channels of a diffusion transformer differ in scale by far, hence the norm.
    neck=[
        dict(type='mmaselect.BatchNormNeck', in_channels=[_base_.width]),
        dict(
            type='mmaselect.SimpleFeaturePyramid',
            in_channels=_base_.width,
            out_channels=256,
            rescales=[4, 2, 1, 0.5],
            num_outs=5,
        ),
    ],
)
