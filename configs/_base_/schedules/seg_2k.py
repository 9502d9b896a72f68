# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
# 2k iterations of 8 images, and all else as for 80k.
_base_ = './seg_80k.py'
optim_wrapper = dict(optimizer=dict(lr=1e-3))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=100),
    dict(type='PolyLR', eta_min=0.0, power=1.0, begin=100, end=2000, by_epoch=False),
]
train_cfg = dict(max_iters=2000, val_interval=500)
default_hooks = dict(logger=dict(interval=20), checkpoint=dict(interval=500))
auto_scale_lr = dict(base_batch_size=8)
