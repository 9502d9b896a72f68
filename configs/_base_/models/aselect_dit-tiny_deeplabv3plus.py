# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
# DeepLabV3+ on the DiT that ships with the package.
_base_ = ['../backbones/dit-tiny.py', '../heads/deeplabv3plus.py']
model = dict(
    data_preprocessor=dict(size=(96, 96)),
    backbone=dict(_base_.base_backbone, blocks=[1, 2, 3, 4]),
    decode_head=dict(
        in_channels=_base_.width,
        c1_in_channels=_base_.width,
        channels=64,
        num_classes=11,
    ),
)
