# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
# UperNet on one block of a frozen FLUX.1-dev.
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
        pretrained='black-forest-labs/FLUX.1-dev',
        # Of 57, 19 with two streams and 38 with one: the middle. The reference names none for FLUX.
        blocks=[28, 28, 28, 28],
        feature='query',
        timestep='auto',
        # The timestep is picked at the size that the heads are trained at.
        selection=dict(image_size=512),
        # The empty prompt; FLUX.1 cannot do without T5, which is loaded once, to embed it.
        condition=dict(prompt='', guidance=3.5),
        # The same as the data_preprocessor's, so that the model's own [-1, 1] is restored.
        input_mean=[127.5, 127.5, 127.5],
        input_std=[127.5, 127.5, 127.5],
        # As it was trained; its activations come near the end of fp16's range.
        dtype='bf16',
    ),
    # Four times the same map; the neck makes the strides 4, 8, 16 and 32 of it.
    neck=dict(type='Feature2Pyramid', embed_dim=3072, rescales=[4, 2, 1, 0.5], norm_cfg=norm_cfg),
    decode_head=dict(
        type='UPerHead',
        in_channels=[3072, 3072, 3072, 3072],
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
        in_channels=3072,
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
