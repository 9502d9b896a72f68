# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
# DeepLabV3+: atrous convolutions on the deepest map, details from the first one.
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
        size=(512, 512),
    ),
    decode_head=dict(
        type='DepthwiseSeparableASPPHead',
        in_index=3,
        channels=256,
        # For maps of 24 to 32 tokens a side; the published 12, 24, 36 are for 64.
        dilations=(1, 6, 12, 18),
        c1_channels=48,
        dropout_ratio=0.1,
        num_classes=150,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)
