# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
# The reference head of A-SelecT: two attention blocks around a class token.
model = dict(
    type='ImageClassifier',
    head=dict(
        type='mmaselect.AttentionPoolClsHead',
        num_classes=200,
        embed_dims=800,
        num_layers=2,
        num_heads=8,
        mlp_ratio=4.0,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
        topk=(1, 5),
    ),
)
