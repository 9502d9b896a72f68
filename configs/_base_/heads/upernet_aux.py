# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
# UperNet, and a second loss on the third map.
_base_ = './upernet.py'
model = dict(
    auxiliary_head=dict(
        type='FCNHead',
        in_index=2,
        channels=256,
        num_convs=1,
        concat_input=False,
        dropout_ratio=0.1,
        num_classes=150,
        norm_cfg=_base_.norm_cfg,
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=0.4),
    ),
)
