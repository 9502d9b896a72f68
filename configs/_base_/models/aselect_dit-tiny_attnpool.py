# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
# The reference head of A-SelecT, narrowed, on the DiT that ships with the package (pixel space,
# patch 4, six blocks of width 224).
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
    head=dict(
        type='mmaselect.AttentionPoolClsHead',
        num_classes=10,
        in_channels=224,
        embed_dims=224,
        num_layers=2,
        num_heads=8,
        mlp_ratio=4.0,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
        topk=(1, 5),
    ),
)
