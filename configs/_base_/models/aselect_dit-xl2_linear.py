# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
# A linear probe of a frozen DiT-XL/2.
_base_ = ['../backbones/dit-xl2.py', '../heads/linear.py']
model = dict(
    backbone=_base_.base_backbone,
    neck=[
        dict(type='GlobalAveragePooling'),
        # Channels of a diffusion transformer differ in scale by orders of magnitude; without learnt
        # parameters, as MAE's probes have it, the normalization leaves the probe linear.
        dict(type='ClsBatchNormNeck', input_features=_base_.width),
    ],
    head=dict(in_channels=_base_.width),
)
