# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
# A linear probe of the DiT that ships with the package (pixel space, patch 4, six blocks of width
# 224): average pooling, normalization over the batch, one linear layer.
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='mmaselect.ASelecTDiT',
        pretrained='mmaselect://dit_cifar10',
        # Of six; nothing deeper is loaded.
        blocks=[3],
        feature='query',
        timestep='auto',
        # The same as the data_preprocessor's, so that the model's own [-1, 1] is restored.
        input_mean=[127.5, 127.5, 127.5],
        input_std=[127.5, 127.5, 127.5],
    ),
    neck=[
        dict(type='GlobalAveragePooling'),
        # Channels of a diffusion transformer differ in scale by orders of magnitude; without learnt
        # parameters, as MAE's probes have it, the normalization leaves the probe linear.
        dict(type='ClsBatchNormNeck', input_features=224),
    ],
    head=dict(
        type='LinearClsHead',
        num_classes=10,
        in_channels=224,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
        topk=(1, 5),
    ),
)
