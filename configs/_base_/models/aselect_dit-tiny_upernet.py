# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
# A narrow UperNet on the DiT that ships with the package.
_base_ = ['../backbones/dit-tiny.py', '../heads/upernet.py']
model = dict(
    data_preprocessor=dict(size=(96, 96)),
    backbone=dict(_base_.base_backbone, blocks=[1, 2, 3, 4]),
    # The maps' stride is 4; the strides 2, 4, 8 and 16 are made of it.
    neck=dict(embed_dim=_base_.width, rescales=[2, 1, 0.5, 0.25]),
    decode_head=dict(in_channels=[_base_.width] * 4, channels=64, num_classes=11),
    test_cfg=dict(_delete_=True, mode='whole'),
)
