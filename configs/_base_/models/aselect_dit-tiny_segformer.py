# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
# SegFormer's head on the DiT that ships with the package.
_base_ = ['../backbones/dit-tiny.py', '../heads/segformer.py']
model = dict(
    data_preprocessor=dict(size=(96, 96)),
    backbone=dict(_base_.base_backbone, blocks=[1, 2, 3, 4]),
    decode_head=dict(in_channels=[_base_.width] * 4, channels=64, num_classes=11),
)
