# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
# UperNet on four depths of a frozen DiT-XL/2.
_base_ = ['../backbones/dit-xl2.py', '../heads/upernet_aux.py']
model = dict(
    # The middle third is where features are best (block 13 in DDAE's linear probes, 9 of 24 in
    # A-SelecT's reference), and nothing deeper than the last one is loaded or run.
    backbone=dict(_base_.base_backbone, blocks=[8, 11, 14, 17]),
    neck=dict(embed_dim=_base_.width),
    decode_head=dict(in_channels=[_base_.width] * 4),
    auxiliary_head=dict(in_channels=_base_.width),
)
