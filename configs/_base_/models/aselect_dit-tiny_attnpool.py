# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
# The reference head of A-SelecT, narrowed, on the DiT that ships with the package.
_base_ = ['../backbones/dit-tiny.py', '../heads/attnpool.py']
model = dict(
    backbone=_base_.base_backbone,
    head=dict(in_channels=_base_.width, embed_dims=_base_.width, num_classes=10),
)
