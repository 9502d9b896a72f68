# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
# The reference head of A-SelecT on a frozen FLUX.1-dev.
_base_ = ['../backbones/flux1-dev.py', '../heads/attnpool.py']
model = dict(
    backbone=_base_.base_backbone,
    head=dict(in_channels=_base_.width),
)
