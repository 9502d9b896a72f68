# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
# The linear evaluation of DINOv2: batch norm, and one linear layer for each token of all maps.
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[127.5, 127.5, 127.5],
        std=[127.5, 127.5, 127.5],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size=(512, 512),
    ),
    neck=dict(type='mmaselect.BatchNormNeck'),
    decode_head=dict(
        type='FCNHead',
        input_transform='resize_concat',
        in_index=[0, 1, 2, 3],
        num_convs=0,
        kernel_size=1,
        concat_input=False,
        dropout_ratio=0.0,
        num_classes=150,
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)
