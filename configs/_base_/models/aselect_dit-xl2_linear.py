# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
# A linear probe of a frozen DiT-XL/2: average pooling, normalization over the batch, one linear
# layer.
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='mmaselect.ASelecTDiT',
        pretrained='facebook/DiT-XL-2-512',
        # Of 28: DDAE's linear probes of DiT-XL/2 are best there. Nothing deeper is loaded.
        blocks=[13],
        feature='query',
        timestep='auto',
        # The same as the data_preprocessor's, so that the model's own [-1, 1] is restored.
        input_mean=[127.5, 127.5, 127.5],
        input_std=[127.5, 127.5, 127.5],
        dtype='fp16',
    ),
    neck=[
        dict(type='GlobalAveragePooling'),
        # Channels of a diffusion transformer differ in scale by orders of magnitude; without learnt
        # parameters, as MAE's probes have it, the normalization leaves the probe linear.
        dict(type='ClsBatchNormNeck', input_features=1152),
    ],
    head=dict(
        type='LinearClsHead',
        num_classes=200,
        in_channels=1152,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
        topk=(1, 5),
    ),
)
