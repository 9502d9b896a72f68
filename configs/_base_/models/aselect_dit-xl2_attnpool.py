# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
# The reference head of A-SelecT on a frozen DiT-XL/2: two attention blocks around a class token.
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
    head=dict(
        type='mmaselect.AttentionPoolClsHead',
        num_classes=200,
        in_channels=1152,
        embed_dims=800,
        num_layers=2,
        num_heads=8,
        mlp_ratio=4.0,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
        topk=(1, 5),
    ),
)
