# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
# UperNet on one block of a frozen Stable Diffusion 3 medium.
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
    backbone=dict(
        type='mmaselect.ASelecTDiT',
        pretrained='stabilityai/stable-diffusion-3-medium-diffusers',
        # Of 24: the reference block. The first 10 blocks are all that is loaded.
        blocks=[9, 9, 9, 9],
        feature='query',
        timestep='auto',
        # The timestep is picked at the size that the heads are trained at.
        selection=dict(image_size=512),
        # The empty prompt, without T5, as in the reference.
        condition=dict(prompt='', t5=False),
        # The same as the data_preprocessor's, so that the model's own [-1, 1] is restored.
        input_mean=[127.5, 127.5, 127.5],
        input_std=[127.5, 127.5, 127.5],
        dtype='fp16',
    ),
    # Four times the same map; the neck makes the strides 4, 8, 16 and 32 of it.
    neck=dict(type='Feature2Pyramid', embed_dim=1536, rescales=[4, 2, 1, 0.5], norm_cfg=norm_cfg),
    decode_head=dict(
        type='UPerHead',
        in_channels=[1536, 1536, 1536, 1536],
        in_index=[0, 1, 2, 3],
        pool_scales=(1, 2, 3, 6),
        channels=512,
        dropout_ratio=0.1,
        num_classes=150,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
    ),
    auxiliary_head=dict(
        type='FCNHead',
        in_channels=1536,
        in_index=2,
        channels=256,
        num_convs=1,
        concat_input=False,
        dropout_ratio=0.1,
        num_classes=150,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=0.4),
    ),
    train_cfg=dict(),
    # Windows of the size that the heads are trained at.
    test_cfg=dict(mode='slide', crop_size=(512, 512), stride=(341, 341)),
)
