# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
# A-SelecT's reference schedule for 28 epochs: AdamW, cosine to zero, no warm-up.
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=3e-3, weight_decay=1e-3))
param_scheduler = dict(
    type='CosineAnnealingLR', T_max=28, end=28, by_epoch=True, convert_to_iter_based=True
)
train_cfg = dict(by_epoch=True, max_epochs=28, val_interval=1)
val_cfg = dict()
test_cfg = dict()
