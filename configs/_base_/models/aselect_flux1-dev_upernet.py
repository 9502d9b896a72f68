# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
# UperNet on one block of a frozen FLUX.1-dev.
_base_ = ['../backbones/flux1-dev.py', '../heads/upernet_aux.py']
model = dict(
    # Four times the same map.
    backbone=dict(_base_.base_backbone, blocks=[28] * 4),
    neck=dict(embed_dim=_base_.width),
    decode_head=dict(in_channels=[_base_.width] * 4),
    auxiliary_head=dict(in_channels=_base_.width),
)
