# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
# UperNet on the DiT that ships with the package: pixel space, patch 4, six blocks of width 224.
norm_cfg = dict(type='BN', requires_grad=True)
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[127.5, 127.5, 127.5],
        std=[127.5, 127.5, 127.5],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size=(96, 96),
    ),
    backbone=dict(
        type='mmaselect.ASelecTDiT',
        pretrained='mmaselect://dit_cifar10',
        blocks=[1, 2, 3, 4],
        feature='query',
        timestep='auto',
        # The same as the data_preprocessor's, so that the model's own [-1, 1] is restored.
        input_mean=[127.5, 127.5, 127.5],
        input_std=[127.5, 127.5, 127.5],
    ),
    # All four maps have one size, stride 4; the neck makes the strides 2, 4, 8 and 16 of them.
    neck=dict(type='Feature2Pyramid', embed_dim=224, rescales=[2, 1, 0.5, 0.25], norm_cfg=norm_cfg),
    decode_head=dict(
        type='UPerHead',
        in_channels=[224, 224, 224, 224],
        in_index=[0, 1, 2, 3],
        pool_scales=(1, 2, 3, 6),
        channels=64,
        dropout_ratio=0.1,
        num_classes=11,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)
