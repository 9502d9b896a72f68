# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
# A-SelecT's reference schedule for 28 epochs: AdamW, cosine to zero, no warm-up.
_base_ = './cls_100e.py'
param_scheduler = dict(T_max=28, end=28)
train_cfg = dict(max_epochs=28)
