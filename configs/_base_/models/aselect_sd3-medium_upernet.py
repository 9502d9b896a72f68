# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
# UperNet on one block of a frozen Stable Diffusion 3 medium.
_base_ = ['../backbones/sd3-medium.py', '../heads/upernet_aux.py']
model = dict(
    # Four times the map of the reference block.
    backbone=dict(_base_.base_backbone, blocks=[9] * 4),
    neck=dict(embed_dim=_base_.width),
    decode_head=dict(in_channels=[_base_.width] * 4),
    auxiliary_head=dict(in_channels=_base_.width),
)
