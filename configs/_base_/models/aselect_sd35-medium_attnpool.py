# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
# The reference head of A-SelecT, two attention blocks around a class token.
# Frozen: Stable Diffusion 3.5 medium.
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='mmaselect.ASelecTDiT',
        pretrained='stabilityai/stable-diffusion-3.5-medium',
        # Of 24: the reference block. The first 10 blocks are all that is loaded.
        blocks=[9],
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
    head=dict(
        type='mmaselect.AttentionPoolClsHead',
        num_classes=200,
        in_channels=1536,
        embed_dims=800,
        num_layers=2,
        num_heads=8,
        mlp_ratio=4.0,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
        topk=(1, 5),
    ),
)
